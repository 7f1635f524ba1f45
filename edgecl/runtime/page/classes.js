// The cards of the classes. Their pictures come once they are in sight.
import {$, ask, count, drawing, el, hint, once, percent, query, tell} from './tools.js';
import {forget, rename} from './correct.js';
import {open} from './samples.js';
import {takesFiles} from './teach.js';
import {whenSeen} from './pictures.js';

const pictures = new Map();   // class -> [what is known of it, its pictures]
let refresh = () => {};

export const following = after => { refresh = after; };

const said = (...what) => tell($('said'), ...what);

function focusCard(name) {
  const card = [...$('known').children].find(each => each.dataset.name === name);
  (card?.querySelector('.open') ?? $('classes-title')).focus();
}

function card(each) {
  const thumbs = el('div', {className: 'thumbs'}), word = (text, what, work) => {
    const button = el('button', {type: 'button', className: 'link', textContent: text, onclick: work});
    button.setAttribute('aria-label', what);
    return button;
  };
  const name = el('button', {type: 'button', className: 'name', onclick: () => rename(each.name, said)}, el('bdi', {textContent: each.name}));
  hint(name, `${each.name}: rename`);
  const see = word('Samples', `Samples of ${each.name}`, () => open(each.name, focusCard));
  see.classList.add('open');
  const made = el('li', {className: 'card class'}, thumbs, el('h3', {}, name),
    el('p', {className: 'quiet small', textContent: count(each.samples, 'sample')
      + (each.accuracy === null ? '' : `, ${percent(each.accuracy)} correct (${each.right} of ${each.judged})`)}),
    el('div', {className: 'row does'}, see, word('Forget', `Forget ${each.name}`, () => forget(each.name, said))));
  made.dataset.name = each.name;
  takesFiles(made, () => each.name, () => refresh());
  thumbs.addEventListener('click', () => open(each.name, focusCard));
  if (each.exemplars) whenSeen(made, () => thumbnails(each, thumbs)); else thumbs.remove();
  return made;
}

export const classes = once((found, _generation) => {
  for (const name of pictures.keys()) if (!found.some(each => each.name === name)) pictures.delete(name);
  const focused = document.activeElement?.closest?.('#known > li'), place = focused ? [focused.dataset.name, [...focused.querySelectorAll('button')].indexOf(document.activeElement)] : null;
  $('known').replaceChildren(...found.map(card));
  if (place) [...$('known').children].find(each => each.dataset.name === place[0])?.querySelectorAll('button')[place[1]]?.focus();
  if (!found.length) $('known').replaceChildren(el('li', {className: 'quiet', textContent: 'None yet. Type a name, show the object, and hold the button.'}));
});

async function thumbnails(each, place) {
  const known = JSON.stringify(each);
  let [before, found] = pictures.get(each.name) ?? [];
  if (before !== known) {
    found = await ask(query('/api/exemplars', {class: each.name})).catch(() => []);
    pictures.set(each.name, [known, found]);
  }
  if (!found.length) { place.remove(); return; }
  place.classList.toggle('curves', !found[0].image);
  place.replaceChildren(...found.map((picture, i) => drawing(picture, `${each.name}, sample ${i + 1}`)));
}
