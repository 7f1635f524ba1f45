// What could be better: advice, which classes are confused, and samples that may be in the wrong class.
import {$, ask, count, el, percent, query, tell} from './tools.js';
import {move, remove} from './correct.js';
import {open} from './samples.js';
import {shown} from './pictures.js';

const MOST = 24;              // suspicious samples that are shown
const FOUND = ['advice', 'confused', 'suspects'];
let judged = null, names = new Set();

const said = (...what) => tell($('doubts-said'), ...what);
const named = name => !names.has(name) ? el('bdi', {textContent: name}) : el('button', {type: 'button', className: 'link', onclick: () => open(name, () => $('look').focus())}, el('bdi', {textContent: name}));

function confusions(found) {
  $('confused').hidden = !found.length;
  $('pairs').replaceChildren(...found.map(each => el('tr', {}, el('th', {scope: 'row'}, named(each.class)), el('td', {}, named(each.taken_for)),
    el('td', {textContent: `${each.wrong} of ${each.of}`}), el('td', {textContent: each.back_of ? `${each.back_wrong} of ${each.back_of}` : ''}),
    el('td', {}, el('bdi', {className: 'quiet', textContent: each.source ? `${each.from_source} from ${each.source}` : ''})))));
}

function suspect(sample) {
  const word = (text, about, work, cls = '') => {
    const button = el('button', {type: 'button', className: cls, onclick: async () => {
      if (await work() === false) return;
      const next = (item.nextElementSibling ?? item.previousElementSibling)?.querySelector('button') ?? $('look');
      item.remove();
      next.focus();
      if (!$('suspects').children.length) none();
    }}, text);
    button.setAttribute('aria-label', about);
    return button;
  };
  const what = sample.source || sample.id, other = sample.looks_like && sample.looks_like !== sample.class ? sample.looks_like : null;
  const item = el('li', {className: 'frame'}, shown(sample, `Sample ${what}`), el('div', {className: 'naming'},
    el('p', {}, 'In ', el('b', {}, el('bdi', {textContent: sample.class}))),
    el('p', {className: 'quiet small', textContent: sample.reason}), el('p', {className: 'quiet small file', textContent: what, dir: 'auto', title: what}),
    el('div', {className: 'chips'},
      other ? word(el('span', {}, 'Move to ', el('bdi', {textContent: other})), `Move to ${other}: ${what}`, () => move([sample.id], said, other), 'chip first') : null,
      word('Move to …', `Move to …: ${what}`, () => move([sample.id], said), 'chip'),
      word('Remove', `Remove: ${what}`, () => remove([sample.id], said), 'chip'),
      word('It is right', `It is right: ${what}`, async () => true, 'chip'))));
  return item;
}

function none() {
  $('suspects').replaceChildren(el('li', {className: 'quiet', textContent: 'No stored sample looks wrong.'}));
}

async function look() {
  $('look').disabled = true;
  said('Judging all stored samples …');
  const [advice, doubtful] = await Promise.allSettled([ask(query('/api/advise')), ask(query('/api/samples', {suspicious: 1, limit: MOST}))]);
  said('');
  $('look').disabled = false;
  $('look').textContent = 'Look again';
  $('doubts-found').hidden = false;
  $('advice').replaceChildren(...(advice.value?.advice ?? [advice.reason.message]).map(text => el('li', {textContent: text})));
  confusions(advice.value?.confused ?? []);
  if (doubtful.reason) { $('suspects').replaceChildren(el('li', {className: 'quiet', textContent: doubtful.reason.message})); return; }
  judged = doubtful.value.generation;
  const more = doubtful.value.total - doubtful.value.samples.length;
  $('suspects').replaceChildren(...doubtful.value.samples.map(suspect));
  if (!doubtful.value.samples.length) none();
  if (more > 0) said(`${count(more, 'more sample')} may be in the wrong class: look again after these.`);
}

// What is known has changed.
export function doubting(info) {
  names = new Set(info.classes);
  $('doubts').hidden = !info.classes.length;
  $('stale').hidden = judged === null || judged === info.generation;
}

export const doubts = () => $('look').addEventListener('click', look);
