// Teaching: by holding the button, and with files.
import {$, ask, confirmed, count, percent, post, query} from './tools.js';

const TYPES = {jpg: 'image/jpeg', jpeg: 'image/jpeg', png: 'image/png', webp: 'image/webp', bmp: 'image/bmp', gif: 'image/gif',
  tif: 'image/tiff', tiff: 'image/tiff', avif: 'image/avif', heic: 'image/heic', heif: 'image/heif', csv: 'text/csv', npz: 'application/x-npz', json: 'application/json'};
const ACCEPT = {image: 'image/*', window: '.csv,.npz,.json', feature: '.csv,.npz,.json'};
const MOST_UPLOAD = 8 * 2 ** 20; // bytes
const SHORTEST = .3;             // seconds; shorter presses do not count

export const NOTHING = 'nothing'; // the class that is answered as unknown, see edgecl/samples.py

export function say(text, bad = false) {
  $('said').textContent = text;
  $('said').className = bad ? 'said bad' : 'said';
}

function name() {
  const value = $('name').value.trim();
  if (!value) { say('First type the name of the class.', true); $('name').focus(); }
  return value;
}

// Whether two shares, each as [right, of], differ by more than two standard errors; see edgecl/commands/learned.py.
function beyondNoise(before, after) {
  if (!before || !after || Math.min(before[1], after[1]) < 4) return false;
  const pooled = (before[0] + after[0]) / (before[1] + after[1]);
  return Math.abs(after[0] / after[1] - before[0] / before[1]) > 2 * Math.sqrt(pooled * (1 - pooled) * (1 / before[1] + 1 / after[1]));
}

// The result of a `learn`, in words.
export function told(learned, samples = learned.samples) {
  if (!samples) return `Nothing new: ${count(learned.known, 'sample')} of ${learned.label} already known.`;
  const share = ([right, of]) => percent(right / of), judged = learned.judged ?? {};
  const after = learned.accuracy?.[learned.label]?.[1], [right, of] = judged[learned.label]?.[1] ?? [];
  const changed = Object.entries(judged).filter(([other, [was, now]]) => other !== learned.label && beyondNoise(was, now));
  return `Learned ${count(samples, 'sample')} of ${learned.label}` + (after == null ? '.' : `; ${percent(after)} correct (${right} of ${of}).`)
    + (learned.known ? ` ${count(learned.known, 'sample')} already known: left out.` : '')
    + Object.entries(learned.also_in ?? {}).map(([other, sources]) => ` Also in ${other}: ${count(sources.length, 'sample')}.`).join('')
    + (learned.left_out ? ` Left out: ${count(learned.left_out, 'sample')} of one colour or constant.` : '')
    + (changed.length ? ` Changed: ${changed.slice(0, 3).map(([other, [was, now]]) => `${other} (${share(was)} → ${share(now)})`).join(', ')}.` : '');
}

// Whether a name was refused for being nearly that of a known class; see edgecl/samples.py.
const nearly = error => error.what?.includes('is nearly the name of the class');

// Sends what is taught; asks first if its name is nearly that of a known class. send: takes further values.
export async function meant(send) {
  try {
    return await send({});
  } catch (error) {
    if (!nearly(error) || !await confirmed('Another class?', `${error.what}. Are both meant?`, 'Learn it as a class of its own')) throw error;
    return send({distinct: true});
  }
}

// A photo that fits an upload: larger ones are scaled down here.
async function fitted(file, type) {
  if (file.size <= MOST_UPLOAD || !type.startsWith('image/')) return [file, type];
  const bitmap = await createImageBitmap(file), scale = 1600 / Math.max(bitmap.width, bitmap.height);
  const canvas = Object.assign(document.createElement('canvas'), {width: bitmap.width * scale, height: bitmap.height * scale});
  canvas.getContext('2d').drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return [await new Promise(done => canvas.toBlob(done, 'image/jpeg', .92)), 'image/jpeg'];
}

export async function teachFiles(files, label, done) {
  let samples = 0, known = 0, last = null;
  const refused = [];
  for (const [i, file] of files.entries()) {
    say(`Learning ${label}: ${i + 1} of ${files.length} …`);
    const type = TYPES[file.name.split('.').pop().toLowerCase()] ?? (file.type || 'application/octet-stream');
    try {
      const [body, sent] = await fitted(file, type);
      last = await meant(more => ask(query('/api/learn', {class: label, file: file.name, ...(more.distinct && {distinct: 1})}), {method: 'POST', body, type: sent}));
      samples += last.samples;
      known += last.known;
    } catch (error) {
      refused.push(`${file.name}: ${error.message ?? 'can’t be read'}`);
      if (nearly(error)) break;   // and so are all of them
    }
  }
  say([last ? told({...last, known}, samples) : '', ...refused.slice(0, 3), refused.length > 3 ? `and ${refused.length - 3} more.` : ''].filter(Boolean).join(' '), refused.length > 0);
  done();
}

// Lets files be dropped on an element. label: returns the name of the class, or "".
export function takesFiles(element, label, done) {
  element.addEventListener('dragover', event => { event.preventDefault(); element.classList.add('over'); });
  element.addEventListener('dragleave', event => { if (!element.contains(event.relatedTarget)) element.classList.remove('over'); });
  element.addEventListener('drop', event => {
    event.preventDefault();
    element.classList.remove('over');
    const chosen = label();
    if (chosen && event.dataTransfer.files.length) teachFiles([...event.dataTransfer.files], chosen, done);
  });
}

function holds(done) {
  const button = $('hold'), text = $('hold-text');
  let since = null, clock = null, label = '';
  const begin = () => {
    if (since !== null || button.disabled || !(label = name())) return;
    since = performance.now();
    button.classList.add('held');
    say('Recording …');
    clock = setInterval(() => { text.textContent = `Recording ${((performance.now() - since) / 1000).toFixed(1)} s – release to learn`; }, 100);
  };
  const end = async keep => {
    if (since === null) return;
    const seconds = (performance.now() - since) / 1000;
    since = null;
    clearInterval(clock);
    button.classList.remove('held');
    text.textContent = 'Hold to record';
    if (!keep) { say('Cancelled: nothing was learned.'); return; }
    if (seconds < SHORTEST) { say('Hold the button while you show the object.', true); return; }
    say(`Learning ${label} …`);
    try {
      say(told(await meant(more => post('/api/learn_last', {class: label, seconds, source: $('source').value || null, ...more}))));
    } catch (error) { say(error.message, true); }
    done();
  };
  button.addEventListener('pointerdown', event => { if (event.button === 0) { button.setPointerCapture(event.pointerId); begin(); } });
  button.addEventListener('pointerup', () => end(true));
  button.addEventListener('pointercancel', () => end(false));
  button.addEventListener('keydown', event => {
    if (event.key === ' ' || event.key === 'Enter') { event.preventDefault(); if (!event.repeat) begin(); }
    if (event.key === 'Escape') end(false);
  });
  button.addEventListener('keyup', event => { if (event.key === ' ' || event.key === 'Enter') { event.preventDefault(); end(true); } });
  button.addEventListener('blur', () => end(false));
  button.addEventListener('contextmenu', event => event.preventDefault());
}

// Sets up the panel. done: called after each `learn`.
export function teaching(done) {
  holds(done);
  takesFiles($('teach'), name, done);
  $('nothing').addEventListener('click', () => { $('name').value = NOTHING; $('hold').focus(); });
  $('choose').addEventListener('click', () => { if (name()) $('files').click(); });
  $('files').addEventListener('change', event => {
    const files = [...event.target.files];
    event.target.value = '';
    if (files.length) teachFiles(files, $('name').value.trim(), done);
  });
  for (const kind of ['dragover', 'drop'])  // a file dropped beside the panel must not replace the page
    window.addEventListener(kind, event => event.preventDefault());
}

// Fits the panel to the kind of samples that the state takes, and to its sources.
export function offer(info) {
  document.querySelector('#drop .what').textContent = info.kind === 'image' ? 'photos' : info.kind ? 'recordings' : 'files';
  $('choose').textContent = info.kind === 'image' ? 'Choose photos' : 'Choose files';
  $('files').accept = ACCEPT[info.kind] ?? '';
  $('names').replaceChildren(...info.classes.map(each => new Option(each)));
  const names = info.sources.map(each => each.name), chosen = $('source').value;
  $('source').replaceChildren(...names.map(each => new Option(each)));
  if (names.includes(chosen)) $('source').value = chosen;
  $('which').hidden = names.length < 2;
  $('hold').disabled = !names.length;
  $('hold-help').hidden = !names.length;
  $('rest').hidden = info.kind === 'feature' || info.classes.length < 2 || info.classes.includes(NOTHING);
}
