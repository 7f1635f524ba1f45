// The page: asks once, then follows the daemon's events.
import {$, ago, ask, confirmed, count, drawing, el, measure, once, percent, post, query, size} from './tools.js';
import {offer, say, takesFiles, teaching, told} from './teach.js';

const PICTURE_EVERY = 300, LOOK_EVERY = 5000;   // milliseconds
const FEW = 6;                                  // generations shown at first
const views = new Map();                        // source -> its elements
const pictures = new Map();                     // class -> [samples it had, its pictures]
let info = null, allGenerations = false;

// what it sees now ------------------------------------------------------------------------------

function view(source) {
  if (views.has(source)) return views.get(source);
  const made = {pane: el('div', {className: 'pane'}), label: el('p', {className: 'label', textContent: '…'}), confidence: el('span'),
    time: el('span', {className: 'quiet'}), meter: el('div'), at: 0, busy: false, said: ''};
  made.root = el('article', {className: 'card view'}, made.pane,
    el('div', {className: 'under'}, el('p', {className: 'quiet small', textContent: source}), made.label, made.meter,
      el('p', {className: 'meta small quiet'}, made.confidence, made.time)));
  made.label.setAttribute('aria-live', 'polite');
  views.set(source, made);
  $('views').append(made.root);
  return made;
}

function sees(source, said) {
  const shown = view(source), text = said.unknown ? 'unknown' : said.label;
  if (shown.said !== text) {
    shown.said = text;
    shown.label.textContent = said.unknown ? 'Something unknown' : said.label;
    shown.label.classList.toggle('unknown', said.unknown);
  }
  const bar = measure('Confidence', percent(said.confidence), said.confidence).lastChild;
  bar.className = 'bar';
  shown.meter.replaceChildren(bar);
  shown.confidence.textContent = said.unknown ? `nearest is ${said.label}, ${percent(said.confidence)}` : `${percent(said.confidence)} sure`;
  shown.time.textContent = `${said.milliseconds.toFixed(1)} ms`;
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

function sources(found) {
  for (const each of found) {
    const shown = view(each.name);
    if (!each.alive) {
      [shown.said, shown.label.textContent] = ['', each.error ? 'No signal' : 'Waiting'];
      shown.label.classList.add('unknown');
      shown.confidence.textContent = each.error;
      shown.time.textContent = '';
      shown.meter.replaceChildren();
    } else if (!info.classes.length) {
      [shown.said, shown.label.textContent] = ['', 'Nothing is taught yet'];
      shown.label.classList.add('unknown');
      look(each.name);
    }
  }
  for (const [name, shown] of views)
    if (!found.some(each => each.name === name)) { shown.root.remove(); views.delete(name); }
  if (!found.length && !$('views').children.length)
    $('views').append(el('div', {className: 'card view'}, el('div', {className: 'under'}, el('p', {className: 'label unknown', textContent: 'No source'}),
      el('p', {className: 'quiet', textContent: 'Name a camera or sensor as [[source]] in the daemon’s configuration. Files can be taught all the same.'}))));
}

// budget ----------------------------------------------------------------------------------------

const budget = once(b => {
  const bars = [
    measure('State on disk', `${size(b.used_bytes)} of ${size(b.quota_bytes)}`, b.used_bytes / b.quota_bytes),
    measure('Exemplars', `${size(b.exemplar_bytes)} of ${size(b.exemplar_limit_bytes)}`, b.exemplar_bytes / Math.max(b.exemplar_limit_bytes, 1))];
  if (b.heat_celsius !== null) bars.push(measure('Heat', `${Math.round(b.heat_celsius)} °C${b.heat_limit === null ? '' : ` of ${Math.round(b.heat_limit)} °C`}`, b.heat_limit ? b.heat_celsius / b.heat_limit : 0));
  if (typeof b.battery === 'number') bars.push(measure('Battery', percent(b.battery > 1 ? b.battery / 100 : b.battery), b.battery > 1 ? b.battery / 100 : b.battery));
  bars.push(el('p', {className: 'quiet small'}, `${size(b.rss_bytes)} of memory. ` + (b.may_run.ok ? 'There is room for a learning round.' : `No learning round now: ${b.may_run.reason}.`)));
  $('bars').replaceChildren(...bars);
});

// classes ---------------------------------------------------------------------------------------

async function forget(name) {
  if (!await confirmed(`Forget ${name}?`, 'All that was learned of it is erased, in older generations as well. This can’t be undone.', `Forget ${name}`)) return;
  await tried(async () => {
    const done = await post('/api/forget', {class: name});
    say(`Forgot ${name}${done.exact ? '' : ', approximately'}.`);
  });
}

const classes = once(found => {
  for (const name of pictures.keys()) if (!found.some(each => each.name === name)) pictures.delete(name);
  $('known').replaceChildren(...found.map(each => {
    const thumbs = el('div', {className: 'thumbs'});
    const button = el('button', {type: 'button', className: 'link', textContent: 'Forget', onclick: () => forget(each.name)});
    button.setAttribute('aria-label', `Forget ${each.name}`);
    const card = el('li', {className: 'card class'}, thumbs, el('div', {className: 'head'}, el('h3', {textContent: each.name}), button),
      el('p', {className: 'quiet small', textContent: count(each.samples, 'sample')
        + (each.held_back_accuracy === null ? '' : `, ${percent(each.held_back_accuracy)} right on held-back ones`)}));
    takesFiles(card, () => each.name, refresh);
    thumbnails(each, thumbs);
    return card;
  }));
  if (!found.length) $('known').replaceChildren(el('li', {className: 'quiet', textContent: 'None yet. Give the first one a name, show it, and hold the button.'}));
});

async function thumbnails(each, place) {
  if (!each.exemplars) { place.remove(); return; }
  let [samples, found] = pictures.get(each.name) ?? [];
  if (samples !== each.samples) {
    found = await ask(query('/api/exemplars', {class: each.name})).catch(() => []);
    pictures.set(each.name, [each.samples, found]);
  }
  if (!found.length) { place.remove(); return; }
  place.classList.toggle('curves', !found[0].image);
  place.replaceChildren(...found.map((picture, i) => drawing(picture, `${each.name}, sample ${i + 1}`)));
}

// review ----------------------------------------------------------------------------------------

const review = once((found, names) => {
  $('review').hidden = !found.length;
  const typed = document.activeElement?.closest?.('.frame form') ? document.activeElement.value : '';
  if (typed) return;  // somebody writes a name
  $('frames').replaceChildren(...found.slice(0, 12).map(each => {
    const shot = el('div', {className: 'shot'}), gone = () => { item.remove(); refresh(); };
    const named = name => tried(async () => { say(told(await post(`/api/review/${each.id}`, {class: name}))); gone(); });
    const guesses = [each.label, ...names.filter(name => name !== each.label)].filter(Boolean).slice(0, 5);
    const other = el('input', {placeholder: 'another name', maxLength: 64, autocomplete: 'off'});
    other.setAttribute('list', 'names');
    other.setAttribute('aria-label', `Another name for frame ${each.id}`);
    const form = el('form', {}, other, el('button', {textContent: 'Learn'}));
    form.addEventListener('submit', event => { event.preventDefault(); if (other.value.trim()) named(other.value.trim()); });
    const item = el('li', {className: 'frame'}, shot,
      el('p', {className: 'quiet small', textContent: `${each.unknown ? 'Unknown, nearest' : 'Perhaps'} ${each.label}, ${percent(each.confidence)} · ${each.source}`}),
      el('div', {className: 'chips'}, ...guesses.map((name, i) => el('button', {type: 'button', className: `chip${i ? '' : ' first'}`, textContent: name, onclick: () => named(name)}))),
      form, el('button', {type: 'button', className: 'link small', textContent: 'Leave it out',
        onclick: () => tried(async () => { await ask(`/api/review/${each.id}`, {method: 'DELETE'}); gone(); })}));
    ask(`/api/review/${each.id}`).then(picture => shot.replaceWith(drawing(picture, `Frame ${each.id} of ${each.source}`, 'shot')), () => item.remove());
    return item;
  }));
});

// rounds and generations ------------------------------------------------------------------------

const rounds = once((found, running, plan) => {
  $('start').disabled = running;
  $('start').textContent = running ? 'A round is running …' : 'Start a round';
  $('plan').textContent = running ? 'It answers as before meanwhile.' : plan ? `${plan[0].toUpperCase()}${plan.slice(1)}.` : '';
  $('verdicts').replaceChildren(...found.slice(0, 8).map(each => {
    const checks = el('dl', {}, ...(each.checks ?? []).flatMap(([name, seen]) => [el('dt', {textContent: name}), el('dd', {className: 'quiet', textContent: seen})]));
    return el('li', {}, el('div', {className: 'head'}, el('span', {textContent: `${each.method}${each.seconds ? `, ${Math.round(each.seconds)} s` : ''}`}),
      el('span', {className: `tag ${each.taken ? 'yes' : 'no'}`, textContent: each.taken ? 'taken' : 'refused'})),
      el('p', {className: 'quiet small', textContent: each.taken ? `Generation ${each.generation} answers with it.` : (each.reasons ?? []).join('; ')}),
      each.checks?.length ? el('details', {}, el('summary', {textContent: 'What the gate found'}), checks) : null);
  }));
  if (!found.length) $('verdicts').replaceChildren(el('li', {className: 'quiet small', textContent: 'None yet. A round tunes the backbone in its own process; the gate takes its result only where it is better.'}));
});

const history = once((found, all) => {
  const newest = [...found].reverse(), shown = all ? newest : newest.slice(0, FEW);
  $('more').hidden = all || newest.length <= FEW;
  $('generations').replaceChildren(...shown.map(each => {
    const what = each.action === 'rollback' ? `went back to ${each.to}` : [each.action, each.class ?? each.method ?? ''].join(' ');
    const seconds = (Date.now() - Date.parse(each.created)) / 1000;
    const button = each.restorable && !each.current ? el('button', {type: 'button', textContent: 'Go back', onclick: () => goBack(each)}) : null;
    button?.setAttribute('aria-label', `Go back to generation ${each.generation}`);
    return el('li', {}, el('span', {}, el('b', {textContent: `${each.generation} `}), what,
      el('br'), el('span', {className: 'quiet small', textContent: `${ago(Math.max(seconds, 0))}${each.undone ? ', undone' : ''}`})),
      each.current ? el('span', {className: 'tag yes', textContent: 'answers now'}) : button);
  }));
});

async function goBack(generation) {
  if (!await confirmed(`Go back to generation ${generation.generation}?`, 'What was learned after it is set aside. The step back is a generation of its own.', 'Go back')) return;
  await tried(async () => {
    const done = await post('/api/rollback', {generation: generation.generation});
    say(`Generation ${done.restored} answers again, with ${count(done.classes, 'class', 'classes')}.`);
  });
}

// all of it -------------------------------------------------------------------------------------

async function tried(work) {
  try { await work(); } catch (error) { say(error.message, true); }
  refresh();
}

let refreshing = null, again = false;
async function refresh() {
  if (refreshing) { again = true; return; }
  refreshing = true;
  try {
    const [about, known, past, ran, open, spent, latest] = await Promise.all(
      ['info', 'classes', 'history', 'rounds', 'review', 'budget', 'latest'].map(name => ask(`/api/${name}`)));
    info = about;
    $('about').textContent = [about.backbone, count(about.classes.length, 'class', 'classes'), `generation ${about.generation}`].filter(Boolean).join(' · ');
    online(true);
    offer(about); sources(about.sources); classes(known); budget(spent); review(open, about.classes);
    rounds(ran, about.round_running, about.round_plan); history(past, allGenerations);
    for (const [name, said] of Object.entries(latest)) if (about.sources.find(each => each.name === name)?.alive) sees(name, said);
  } catch (error) { online(false, error); }
  refreshing = null;
  if (again) { again = false; refresh(); }
}

function online(is, error) {
  $('line').className = `pill ${is ? 'on' : 'off'}`;
  $('line').textContent = is ? 'live' : error?.code ? 'refused' : 'no connection';
  $('line').title = error?.message ?? '';
}

function listen() {
  const events = new EventSource('/api/events');
  events.addEventListener('prediction', event => { const said = JSON.parse(event.data); sees(said.source, said); });
  for (const kind of ['generation', 'source']) events.addEventListener(kind, refresh);
  events.addEventListener('round', event => {
    const told = JSON.parse(event.data);
    if (told.error) say(`The round ended: ${told.error.what}`, true);
    refresh();
  });
  events.onopen = () => online(true);
  events.onerror = () => { online(false); if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000); };
}

async function start() {
  const token = new URLSearchParams(location.hash.slice(1)).get('token');
  if (token) {  // a link that brings the token: it leaves the address bar at once
    window.history.replaceState(null, '', '/');
    await post('/api/login', {token}).catch(() => {});
  }
  teaching(refresh);
  $('start').addEventListener('click', () => tried(async () => { await post('/api/round'); say('A learning round has started.'); }));
  $('more').addEventListener('click', () => { allGenerations = true; refresh(); });
  await refresh();
  listen();
  setInterval(() => { if (!document.hidden) refresh(); }, LOOK_EVERY);
  document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh(); });
}

start();
