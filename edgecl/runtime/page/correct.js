// Corrections: samples are removed or moved, classes renamed and forgotten. Each tells what it did, with a way back.
import {ask, chosen, confirmed, count, post, query} from './tools.js';
import {forgetPictures} from './pictures.js';

let names = [], refreshed = () => {};

// after: called after each correction.
export const correcting = after => { refreshed = after; };

// What is known now.
export function known(info) { names = info.classes; }

// Does it, and tells. work: gives a text, and the generation that can be undone. tell: takes a text, whether it is bad,
// and [word, work] of a button. True if it was done.
async function done(work, tell) {
  try {
    const [text, generation] = await work();
    tell(text, false, generation ? ['Undo', () => undo(generation, tell)] : undefined);
    return true;
  } catch (error) {
    tell(error.message, true);
    return false;
  } finally { await refreshed(); }
}

const undo = (generation, tell) => done(async () => {
  const now = (await ask(query('/api/info'))).generation;
  if (now !== generation) throw new Error('Something else has changed since. Go back in the list of generations.');
  await post('/api/rollback');
  return ['Undone.'];
}, tell);

const inexact = found => found.exact ? '' : ` Not exact: ${found.why}.`;
const gone = found => found.gone.length ? ` No sample is left of ${found.gone.join(', ')}: the class is gone.` : '';

export async function remove(ids, tell) {
  const how = await confirmed(`Remove ${count(ids.length, 'sample')}?`,
    'They count as never taught. Removed samples come back with “Undo”; erased ones can’t come back, and older generations go with them.',
    'Remove', 'Erase for good');
  if (!how) return false;
  return done(async () => {
    const found = await post('/api/remove', {ids, erase: how === 'other'});
    if (how === 'other') forgetPictures();
    return [`${how === 'other' ? 'Erased' : 'Removed'} ${count(found.samples, 'sample')}.${gone(found)}${inexact(found)}`, how !== 'other' && found.generation];
  }, tell);
}

export async function move(ids, tell, label = null) {
  label ??= await chosen(`Move ${count(ids.length, 'sample')}`, 'Class', '', 'Move');
  if (!label) return false;
  return done(async () => {
    const found = await post('/api/move', {ids, class: label});
    return [`Moved ${count(found.samples, 'sample')} to ${found.label}.${gone(found)}${inexact(found)}`, found.generation];
  }, tell);
}

// Gives a class another name; the new name, or null.
export async function rename(old, tell) {
  const name = await chosen(`Rename ${old}`, 'New name', old, 'Rename');
  if (!name || name === old) return null;
  const into = names.includes(name);
  if (into && !await confirmed(`Make ${old} and ${name} one class?`, `There is a class ${name} already. All samples of ${old} become samples of ${name}.`, 'Make them one')) return null;
  const ok = await done(async () => {
    const found = await post('/api/rename', {old, new: name, into});
    return [into ? `${old} and ${found.label} are one class now.${inexact(found)}` : `${old} is called ${found.label} now.${inexact(found)}`, found.generation];
  }, tell);
  return ok ? name : null;
}

export async function forget(name, tell) {
  if (!await confirmed(`Forget ${name}?`, 'Everything learned about it is erased, from older generations as well. This can’t be undone.', `Forget ${name}`)) return false;
  return done(async () => {
    const found = await post('/api/forget', {class: name});
    forgetPictures();
    return [found.exact ? `Forgot ${name}.` : `Forgot ${name}; traces of it may remain in shared statistics or in a tuned backbone.`];
  }, tell);
}
