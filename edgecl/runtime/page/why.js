// Why an answer is what it is: the likeliest classes, and the stored samples that are most like what is seen.
import {ask, el, measure, once, percent, query} from './tools.js';
import {shown} from './pictures.js';

const EVERY = 2000;           // milliseconds

function outside(far) {
  if (far === null) return 'It can’t be told yet what is unknown.';
  return far > 1 ? `Outside of what is known: ${far.toFixed(1)} times as far as is still known.` : `Inside of what is known: ${percent(Math.max(0, far))} of the way to unknown.`;
}

// A button that opens what is behind the answers about a source, and its panel. follow(): there is a new answer.
export function whyOf(source) {
  const panel = el('div', {className: 'why', hidden: true, id: `why-${Math.random().toString(36).slice(2)}`});
  const button = el('button', {type: 'button', className: 'link small', textContent: 'Why?'});
  button.setAttribute('aria-expanded', 'false');
  button.setAttribute('aria-controls', panel.id);
  button.setAttribute('aria-label', `Why? ${source}`);
  let at = -EVERY, busy = false;

  const tops = el('div', {className: 'tops'}), words = el('p', {className: 'quiet small'}), matches = el('ul', {className: 'plain nearest'});
  panel.append(tops, words, matches);
  const match = once(found => matches.replaceChildren(...found.map(each => el('li', {}, shown(each, `${each.class}, ${each.source || each.id}`),
    el('bdi', {className: 'small file', textContent: each.class, title: each.class}), el('span', {className: 'small quiet', textContent: `${each.similarity.toFixed(2)} alike`})))));
  async function follow() {
    if (panel.hidden || busy || performance.now() - at < EVERY) return;
    [busy, at] = [true, performance.now()];
    try {
      const found = await ask(query('/api/why', {source}));
      tops.replaceChildren(...found.top.map(each => measure(each.class, percent(each.probability), each.probability, true)));
      words.textContent = [outside(found.outside), found.note ? `No samples to compare with: ${found.note}.` : 'It is most like these samples:'].join(' ');
      match(found.nearest);
    } catch (error) { words.textContent = error.message; }
    busy = false;
  }
  button.addEventListener('click', () => {
    panel.hidden = !panel.hidden;
    button.setAttribute('aria-expanded', !panel.hidden);
    at = -EVERY;
    follow();
  });
  return {button, panel, follow};
}
