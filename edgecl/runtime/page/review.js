// What is not known or not sure, in clusters: named at once, looked through first, or thrown away.
import {$, ask, confirmed, count, drawing, el, once, percent, post, query} from './tools.js';
import {NOTHING, meant, say, told} from './teach.js';
import {selection} from './select.js';
import {whenSeen} from './pictures.js';

const MOST = 12;              // clusters that are shown
let tried = work => work();

// runs: does some work, tells if it fails, and asks for what is known then.
export const reviewing = runs => { tried = runs; };

function picture(number, about, place) {
  ask(query(`/api/review/frames/${number}`)).then(found => {
    place.classList.toggle('curves', !found.image);
    place.replaceChildren(drawing(found, about));
  }, () => place.replaceChildren('gone'));
}

// The frames of a cluster as a list to choose from; changed: called with the numbers of those that are chosen.
function frames(each, changed, drop) {
  const list = el('ul', {className: 'plain tiles', hidden: true});
  list.setAttribute('role', 'listbox');
  list.setAttribute('aria-multiselectable', 'true');
  list.setAttribute('aria-label', `Frames of cluster ${each.id}`);
  const tiles = selection(list, ids => changed(ids.map(Number)), drop);
  return {list, async fill() {
    const found = await ask(query(`/api/review/${each.id}`));
    list.replaceChildren(...found.map((frame, i) => {
      const box = el('div', {className: 'pic'}), option = el('li', {className: 'tile', tabIndex: i ? -1 : 0}, box);
      option.dataset.id = frame.id;
      option.setAttribute('role', 'option');
      option.setAttribute('aria-selected', 'false');
      option.setAttribute('aria-label', `Frame ${frame.id}, seen ${frame.seen} times`);
      whenSeen(box, () => picture(frame.id, '', box));
      return option;
    }));
    list.hidden = false;
    tiles.focus(0);
  }};
}

function cluster(each, names) {
  const shot = el('div', {className: 'pic'}), nearest = each.label ?? NOTHING;
  let chosen = [];
  const gone = () => item.remove();
  const named = name => tried(async () => {
    say(told(await meant(more => post(`/api/review/${each.id}`, {class: name, ...(chosen.length && {frames: chosen}), ...more}))));
    gone();
  });
  const drop = () => tried(async () => {
    const some = chosen.length, what = some ? [...chosen].map(number => `/api/review/frames/${number}`) : [`/api/review/${each.id}`];
    if (!some && each.frames > 1 && !await confirmed(`Throw ${count(each.frames, 'frame')} away?`, 'They are not taught, and can’t be brought back.', 'Throw away')) return;
    for (const path of what) await ask(query(path), {method: 'DELETE'});
    say(`Thrown away: ${count(some || each.frames, 'frame')}.`);
    gone();
  });
  const guesses = [nearest, ...names.filter(name => name !== nearest)].filter(Boolean).slice(0, 3);
  const other = el('input', {placeholder: 'other name', maxLength: 255, autocomplete: 'off'});
  other.setAttribute('list', 'names');
  other.setAttribute('aria-label', `Another name for cluster ${each.id}`);
  const form = el('form', {}, other, el('button', {textContent: 'Learn'}));
  form.addEventListener('submit', event => { event.preventDefault(); if (other.value.trim()) named(other.value.trim()); });
  const away = el('button', {type: 'button', className: 'link small', textContent: 'Throw away', onclick: drop});
  const meantBy = el('p', {className: 'quiet small', hidden: true});
  const inside = frames(each, numbers => {
    chosen = numbers;
    meantBy.textContent = numbers.length ? `Only the ${numbers.length} selected are named or thrown away.` : 'Select frames to name or throw away only those.';
  }, drop);
  const look = el('button', {type: 'button', className: 'link small', textContent: 'Look through', hidden: each.frames < 2});
  look.setAttribute('aria-expanded', 'false');
  look.addEventListener('click', () => tried(async () => {
    const opening = inside.list.hidden;
    inside.list.hidden = meantBy.hidden = !opening;
    look.setAttribute('aria-expanded', opening);
    if (opening) await inside.fill();
  }));
  const item = el('li', {className: 'frame'}, shot, el('div', {className: 'naming'},
    el('p', {className: 'quiet small'}, each.unknown && each.label ? 'Unknown; nearest: ' : 'Perhaps ', el('bdi', {textContent: nearest}),
      `${each.confidence === null ? '' : `, ${percent(each.confidence)}`}; ${count(each.frames, 'frame')}`),
    el('div', {className: 'chips'}, ...guesses.map((name, i) => el('button', {type: 'button', className: `chip${i ? '' : ' first'}`, onclick: () => named(name)}, el('bdi', {textContent: name})))),
    form, el('div', {className: 'row wraps'}, look, away), meantBy, inside.list));
  picture(each.typical, `Frame ${each.typical} of ${each.sources.join(', ')}`, shot);
  return item;
}

export const review = once(({clusters: found}, names) => {
  $('review').hidden = !found.length;
  const typed = document.activeElement?.closest?.('.frame form') ? document.activeElement.value : '';
  if (typed || document.querySelector('#frames .tiles:not([hidden])')) return;  // somebody is at work on one
  $('frames').replaceChildren(...found.slice(0, MOST).map(each => cluster(each, names)));
});
