// What each source shows now, and the answer to it.
import {$, ask, drawing, el, measure, percent, query} from './tools.js';
import {whyOf} from './why.js';

const PICTURE_EVERY = 300;   // milliseconds
const views = new Map();     // source -> its elements

function view(source) {
  if (views.has(source)) return views.get(source);
  const made = {pane: el('div', {className: 'pane'}), label: el('p', {className: 'label', textContent: '…', dir: 'auto'}), confidence: el('span'),
    time: el('span', {className: 'quiet'}), meter: el('div'), why: whyOf(source), at: 0, busy: false, said: ''};
  made.root = el('article', {className: 'card view'}, made.pane,
    el('div', {className: 'under'}, el('p', {className: 'quiet small', textContent: source}), made.label, made.meter,
      el('p', {className: 'meta small quiet'}, made.confidence, made.time), made.why.button, made.why.panel));
  views.set(source, made);
  $('views').append(made.root);
  return made;
}

export function sees(source, said) {
  const shown = view(source), text = said.unknown ? 'unknown' : said.label;
  if (shown.said !== text) {
    shown.said = text;
    shown.label.textContent = said.unknown ? 'Unknown' : said.label;
    shown.label.classList.toggle('unknown', Boolean(said.unknown));
  }
  shown.meter.replaceChildren(measure('Confidence', percent(said.confidence), said.confidence, true).lastChild);
  shown.confidence.textContent = said.label === null ? said.reason : said.unknown ? `nearest: ${said.label}, ${percent(said.confidence)}`
    : [`${percent(said.confidence)} sure`, said.reason].filter(Boolean).join('; ');
  shown.time.textContent = `${said.milliseconds.toFixed(1)} ms`;
  if (said.changed) $('heard').textContent = `${source}: ${said.stable ?? 'unknown'}`;  // not every frame
  shown.why.follow();
  look(source);
}

async function look(source) {
  const shown = view(source), now = performance.now();
  if (shown.busy || document.hidden || now - shown.at < PICTURE_EVERY) return;
  [shown.busy, shown.at] = [true, now];
  try {
    const picture = await ask(query('/api/picture', {source}));
    shown.root.classList.toggle('curves', !picture.image);
    shown.pane.replaceChildren(drawing(picture, `What ${source} shows`));
  } catch { /* the next one comes soon */ }
  shown.busy = false;
}

export function sources({sources: found, classes}) {
  for (const each of found) {
    const shown = view(each.name);
    if (!each.alive) {
      [shown.said, shown.label.textContent] = ['', each.error ? 'No signal' : 'Waiting'];
      shown.label.classList.add('unknown');
      shown.confidence.textContent = each.error;
      shown.time.textContent = '';
      shown.meter.replaceChildren();
    } else if (!classes.length) {
      [shown.said, shown.label.textContent] = ['', 'Nothing learned yet'];
      shown.label.classList.add('unknown');
      look(each.name);
    }
  }
  for (const [name, shown] of views)
    if (!found.some(each => each.name === name)) { shown.root.remove(); views.delete(name); }
  if (!found.length && !$('views').children.length)
    $('views').append(el('div', {className: 'card view'}, el('div', {className: 'under'}, el('p', {className: 'label unknown', textContent: 'No source'}),
      el('p', {className: 'quiet', textContent: 'Add a camera or sensor as [[source]] to the daemon’s settings. You can teach files without one.'}))));
}
