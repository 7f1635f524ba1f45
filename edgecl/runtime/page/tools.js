// Requests to the daemon, and elements. Data becomes text, never HTML.
export const $ = id => document.getElementById(id);

let loggingIn = null;

export class Refused extends Error {
  constructor(code, what, cure) { super(cure ? `${what}; ${cure}` : what); this.code = code; this.what = what; }
}

// The JSON answer to a request. body: an object or a File. Throws Refused.
export async function ask(path, {method = 'GET', body, type} = {}) {
  const raw = body instanceof Blob;
  const headers = body === undefined ? {} : {'Content-Type': raw ? type : 'application/json'};
  let answer;
  try {
    answer = await fetch(path, {method, headers, body: raw || body === undefined ? body : JSON.stringify(body)});
  } catch { throw new Refused(0, 'the daemon does not answer'); }
  if (answer.status === 401 && path !== '/api/login') { await login(); return ask(path, {method, body, type}); }
  const value = await answer.json().catch(() => ({error: `status ${answer.status}`}));
  if (!answer.ok) throw new Refused(answer.status, value.error, value.cure);
  return value;
}

// A path with a query: the values, and the state of this page.
export function query(path, values = {}) {
  const found = new URLSearchParams(values), state = new URLSearchParams(location.search).get('state');
  if (state) found.set('state', state);
  return found.size ? `${path}?${found}` : path;
}

export const post = (path, body = {}) => ask(query(path), {method: 'POST', body});

function login() {  // one dialog for all requests that wait
  return loggingIn ??= new Promise(done => {
    const dialog = $('login');
    dialog.addEventListener('cancel', event => event.preventDefault());
    $('login-form').onsubmit = async event => {
      event.preventDefault();
      try {
        await post('/api/login', {token: $('token').value.trim()});
      } catch (error) { $('login-said').textContent = error.message; return; }
      dialog.close();
      loggingIn = null;
      done();
    };
    dialog.showModal();
  });
}

// Asks a question; true for yes.
export function confirmed(title, text, yes) {
  const dialog = $('ask');
  $('ask-title').textContent = title;
  $('ask-text').textContent = text;
  $('ask-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise(done => dialog.addEventListener('close', () => done(dialog.returnValue === 'yes'), {once: true}));
}

// An element with properties and children (elements or text).
export function el(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

// A sample as a picture, from {image} or {curves}.
export function drawing(picture, about, cls = '') {
  if (picture.image) return el('img', {src: picture.image, alt: about, className: cls});
  return curve(picture.curves, about, cls);
}

function curve(channels, about, cls) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  const values = channels.flat(), low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  svg.setAttribute('viewBox', '0 0 100 100');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('class', `curve ${cls}`);
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', about);
  channels.forEach((channel, i) => {
    const path = document.createElementNS(space, 'path');
    const points = channel.map((v, t) => `${(100 * t / Math.max(channel.length - 1, 1)).toFixed(2)} ${(96 - 92 * (v - low) / span).toFixed(2)}`);
    path.setAttribute('d', `M${points.join('L')}`);
    path.style.stroke = `var(--c${i % 6})`;
    svg.append(path);
  });
  return svg;
}

// A labelled bar of a share. calm: a full bar is not a warning.
export function measure(title, text, share, calm = false) {
  const bar = el('div', {className: `bar${calm ? '' : share >= .97 ? ' full' : share >= .85 ? ' near' : ''}`}, el('i'));
  bar.setAttribute('role', 'meter');
  bar.setAttribute('aria-label', title);
  bar.setAttribute('aria-valuenow', Math.round(100 * share));
  bar.setAttribute('aria-valuetext', text);
  bar.firstChild.style.width = `${Math.min(100, Math.max(share > 0 ? 1.5 : 0, 100 * share))}%`;
  return el('div', {className: 'measure'}, el('p', {}, el('span', {}, title), el('span', {className: 'quiet'}, text)), bar);
}

export function size(bytes) {
  for (const [unit, one] of [['GB', 1e9], ['MB', 1e6], ['KB', 1e3]])
    if (bytes >= one) return `${Number((bytes / one).toPrecision(3))} ${unit}`;
  return `${bytes} B`;
}

export const percent = share => `${Math.round(100 * share)}\u00a0%`;
export const count = (n, what, many = `${what}s`) => `${n.toLocaleString('en')} ${n === 1 ? what : many}`;

export function ago(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
}

// Calls `draw` only if a value has changed, so that focus and scroll position stay.
export function once(draw) {
  let before;
  return (...values) => {
    const now = JSON.stringify(values);
    if (now !== before) { before = now; draw(...values); }
  };
}
