// The page: asks once, then follows the events of the daemon.
import {$, ago, ask, confirmed, count, el, measure, once, percent, post, query, size} from './tools.js';
import {classes, following} from './classes.js';
import {correcting, known} from './correct.js';
import {doubting, doubts} from './doubts.js';
import {follow, sheet} from './samples.js';
import {review, reviewing} from './review.js';
import {sees, sources} from './live.js';
import {offer, say, teaching} from './teach.js';

const REFRESH_EVERY = 5000;                     // milliseconds
const FIRST_GENERATIONS = 6;                    // shown at first
let allGenerations = false;

// budget ----------------------------------------------------------------------------------------

const budget = once(b => {
  const bars = [
    measure('State on disk', `${size(b.used_bytes)} of ${size(b.quota_bytes)}`, b.used_bytes / b.quota_bytes),
    measure('Exemplars', `${size(b.exemplar_bytes)} of ${size(b.exemplar_limit_bytes)}`, b.exemplar_bytes / Math.max(b.exemplar_limit_bytes, 1), true)];
  if (b.heat_celsius !== null) bars.push(measure('Temperature', `${Math.round(b.heat_celsius)} °C${b.heat_limit === null ? '' : ` of ${Math.round(b.heat_limit)} °C`}`, b.heat_limit ? b.heat_celsius / b.heat_limit : 0));
  if (typeof b.battery === 'number') bars.push(measure('Battery', percent(b.battery / 100), b.battery / 100, true));
  bars.push(el('p', {className: 'quiet small'}, `${size(b.rss_bytes)} of memory in use. ` + (b.may_run.ok ? 'A learning round could run now.' : `No learning round can run now: ${b.may_run.reason}.`)));
  $('bars').replaceChildren(...bars);
});

// rounds and generations ------------------------------------------------------------------------

const rounds = once((found, running, plan) => {
  $('start').disabled = running;
  $('start').textContent = running ? 'A round is running …' : 'Start a round';
  $('plan').textContent = running ? 'The present generation answers meanwhile.' : plan ? `${plan[0].toUpperCase()}${plan.slice(1)}.` : '';
  $('verdicts').replaceChildren(...found.slice(0, 8).map((each, i) => {
    const checks = el('dl', {}, ...(each.checks ?? []).flatMap(([name, seen]) => [el('dt', {textContent: name}), el('dd', {className: 'quiet', textContent: seen})]));
    return el('li', {}, el('div', {className: 'head'}, el('span', {textContent: `${each.method}${each.seconds ? `, ${Math.round(each.seconds)} s` : ''}`}),
      el('span', {className: `tag ${each.taken ? 'yes' : 'no'}`, textContent: each.taken ? 'accepted' : 'refused'})),
      el('p', {className: 'quiet small', textContent: each.taken ? `Its result serves as generation ${each.generation}.` : (each.reasons ?? []).join('; ')}),
      each.checks?.length ? el('details', {open: !i}, el('summary', {textContent: 'Checks of the gate'}), checks) : null);
  }));
  if (!found.length) $('verdicts').replaceChildren(el('li', {className: 'quiet small', textContent: 'None yet. A round tunes the backbone in a process of its own. The gate accepts the result only if it is better.'}));
});

const words = {
  rollback: each => `went back to generation ${each.to}`,
  remove: each => `${each.erasing ? 'erase' : 'remove'} ${count(each.samples, 'sample')}`,
  move: each => `move ${count(each.samples, 'sample')} to ${each.class}`,
  rename: each => each.from ? `rename ${each.from} to ${each.class}` : null,
};

const history = once((found, all) => {
  const newest = [...found].reverse(), shown = all ? newest : newest.slice(0, FIRST_GENERATIONS);
  $('more').hidden = all || newest.length <= FIRST_GENERATIONS;
  $('generations').replaceChildren(...shown.map(each => {
    const what = words[each.action]?.(each) ?? [each.action, each.class ?? each.method ?? ''].join(' ');
    const seconds = (Date.now() - Date.parse(each.created)) / 1000;
    const button = each.restorable && !each.current ? el('button', {type: 'button', textContent: 'Go back', onclick: () => goBack(each)}) : null;
    button?.setAttribute('aria-label', `Go back to generation ${each.generation}`);
    return el('li', {}, el('span', {}, el('b', {textContent: `${each.generation} `}), what,
      el('br'), el('span', {className: 'quiet small', textContent: `${ago(Math.max(seconds, 0))}${each.refused ? ', refused' : each.undone ? ', undone' : ''}`})),
      each.current ? el('span', {className: 'tag yes', textContent: 'serving'}) : button);
  }));
});

async function goBack(generation) {
  if (!await confirmed(`Go back to generation ${generation.generation}?`, 'Whatever was learned after it no longer counts. Going back creates a new generation.', 'Go back')) return;
  await tried(async () => {
    const done = await post('/api/rollback', {generation: generation.generation});
    say(`Generation ${done.restored} is restored, with ${count(done.classes, 'class', 'classes')}.`);
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
    const [about, found, past, ran, open, spent, latest] = await Promise.all(
      ['info', 'classes', 'history', 'rounds', 'review', 'budget', 'latest'].map(name => ask(query(`/api/${name}`))));
    $('about').textContent = [about.backbone, count(about.classes.length, 'class', 'classes'), `generation ${about.generation}`].filter(Boolean).join(' · ');
    online(true);
    states({state: about.state, states: about.states});
    known(about); offer(about); sources(about); classes(found, about.generation); doubting(about); follow(about); budget(spent); review(open, about.classes);
    rounds(ran, about.round_running, about.round_plan); history(past, allGenerations);
    for (const [name, said] of Object.entries(latest)) if (about.sources.find(each => each.name === name)?.alive) sees(name, said);
  } catch (error) { online(false, error); }
  refreshing = null;
  if (again) { again = false; refresh(); }
}

const states = once(({state, states: names}) => {
  $('states').hidden = names.length < 2;
  $('states').replaceChildren(...names.map(name => {
    const link = el('a', {href: `/?${new URLSearchParams({state: name})}`, textContent: name});
    if (name === state) link.setAttribute('aria-current', 'page');
    return link;
  }));
});

function online(is, error) {
  $('line').className = `pill ${is ? 'on' : 'off'}`;
  $('line').textContent = is ? 'live' : error?.code ? 'refused' : 'no connection';
  $('line').title = error?.message ?? '';
}

function listen() {
  const events = new EventSource(query('/api/events'));
  events.addEventListener('prediction', event => { const said = JSON.parse(event.data); sees(said.source, said); });
  for (const kind of ['generation', 'source']) events.addEventListener(kind, refresh);
  events.addEventListener('round', event => {
    const told = JSON.parse(event.data);
    if (told.error) say(`The round has failed: ${told.error.what}`, true);
    refresh();
  });
  events.onopen = () => online(true);
  events.onerror = () => { online(false); if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000); };
}

async function start() {
  const token = new URLSearchParams(location.hash.slice(1)).get('token');
  if (token) {  // from a link: it must not stay in the address bar
    window.history.replaceState(null, '', location.pathname + location.search);
    await post('/api/login', {token}).catch(() => {});
  }
  teaching(refresh); following(refresh); correcting(refresh); reviewing(tried); sheet(); doubts();
  $('start').addEventListener('click', () => tried(async () => { await post('/api/round'); say('A learning round has started.'); }));
  $('more').addEventListener('click', () => { allGenerations = true; refresh(); });
  await refresh();
  listen();
  setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_EVERY);
  document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh(); });
}

start();
