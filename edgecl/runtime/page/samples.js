// The samples of a class: looked at, chosen, moved, removed; and its name.
import {$, ask, count, el, hint, query, tell} from './tools.js';
import {move, remove, rename} from './correct.js';
import {selection} from './select.js';
import {shown} from './pictures.js';

const PAGE = 500;         // samples in one request
let label = null, generation = null, total = 0, loading = 0, picked = [], back = () => {};

let last = [];             // what was said
const said = (...what) => { last = what; tell($('sheet-said'), ...what); };
const tiles = selection($('tiles'), ids => {
  $('chosen').textContent = ids.length ? `${ids.length.toLocaleString('en')} selected` : 'None selected';
  for (const id of ['move', 'remove', 'none']) $(id).disabled = !ids.length;
  picked = ids;
}, () => $('remove').click());

function tile(sample) {
  const notes = [sample.near_duplicate && 'near-duplicate', sample.kept === 'coded' && 'coded'].filter(Boolean).join(', ');
  const name = sample.source || sample.id, made = el('li', {className: 'tile', title: name}, shown(sample),
    el('span', {className: 'small file', textContent: name, dir: 'auto'}), notes ? el('span', {className: 'small quiet', textContent: notes}) : null);
  made.dataset.id = sample.id;
  made.setAttribute('role', 'option');
  made.setAttribute('aria-selected', 'false');
  made.setAttribute('aria-label', [name, notes].filter(Boolean).join(', '));
  return made;
}

// Reads the list, or the part of it that follows what is shown.
async function load(more = false) {
  const mine = ++loading, of = label;
  try {
    const found = await ask(query('/api/samples', {class: of, start: more ? $('tiles').children.length : 0, limit: PAGE}));
    if (mine !== loading) return;
    if (more && found.generation !== generation) { await load(); return; }
    [generation, total] = [found.generation, found.total];
    const at = tiles.place(), have = new Map([...$('tiles').children].map(each => [each.dataset.id, each]));
    const made = found.samples.map(each => have.get(each.id) ?? tile(each));
    if (more) $('tiles').append(...made); else $('tiles').replaceChildren(...made);
    tiles.keep();
    if (at >= 0) tiles.focus(at);
    const missing = found.not_stored[of] ?? 0;
    $('sheet-about').textContent = `${count(total, 'stored sample')} of ${found.taught.toLocaleString('en')} taught.`
      + (missing ? ` The buffer has no room for the other ${missing.toLocaleString('en')}: they count, but can’t be shown or corrected one by one.` : '');
  } catch (error) {
    if (mine !== loading) return;
    if (error.code === 400) { gone(); return; }
    said(error.message, true);
  }
  $('sheet-more').hidden = $('tiles').children.length >= total;
  $('tiles').hidden = !$('tiles').children.length;
}

// The class is not there any more: what was said last is said beside the others.
function gone() {
  if (!$('sheet').open) return;
  $('sheet').close();
  if (last[0]) tell($('said'), ...last);
}

async function everything() {
  while ($('tiles').children.length < total) {
    const before = $('tiles').children.length;
    await load(true);
    if ($('tiles').children.length <= before) break;
  }
  tiles.all();
}

function called(name) {
  label = name;
  $('sheet-name').replaceChildren(el('bdi', {textContent: name}));
  hint($('sheet-name'), `${name}: rename`);
}

// Opens a class. closed: called with its name afterwards.
export function open(name, closed = () => {}) {
  called(name);
  [back, generation] = [closed, null];
  said('');
  $('tiles').replaceChildren();
  tiles.none();
  $('sheet-about').textContent = 'Loading …';
  $('sheet').showModal();
  load().then(() => { if ($('sheet').open && document.activeElement === $('sheet-close')) tiles.focus(0); });
}

// What is known has changed.
export function follow(info) {
  if (!$('sheet').open || generation === null || info.generation <= generation) return;
  if (info.classes.includes(label)) load(); else gone();
}

export function sheet() {
  const sticking = (...what) => { said(...what); if (!$('sheet').open) tell($('said'), ...what); };
  $('sheet-close').addEventListener('click', () => $('sheet').close());
  $('sheet').addEventListener('close', event => { if (event.target === $('sheet')) back(label); });
  $('sheet-more').addEventListener('click', () => load(true));
  $('all').addEventListener('click', everything);
  $('none').addEventListener('click', tiles.none);
  for (const [id, correct] of [['move', move], ['remove', remove]])
    $(id).addEventListener('click', async () => {
      const first = [...$('tiles').children].findIndex(each => picked.includes(each.dataset.id));
      if (!await correct(picked, sticking) || !$('sheet').open) return;
      await load();
      tiles.focus(first);
    });
  $('sheet-name').addEventListener('click', async () => {
    const name = await rename(label, sticking);
    if (name) { called(name); load(); }
  });
}
