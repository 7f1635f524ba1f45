// Pictures of stored samples: asked for when they come into sight, many to a request. An id is never used twice.
import {ask, drawing, el, query} from './tools.js';

const TOGETHER = 30;      // milliseconds that a request waits for more ids
const MOST_ASKED = 32;    // in one request
const MOST_KEPT = 1500;   // pictures
const kept = new Map();   // id -> promise of its picture
let waiting = [];

function send() {
  const batch = waiting.splice(0, MOST_ASKED);
  if (waiting.length) setTimeout(send, 0);
  ask(query('/api/pictures', {ids: batch.map(([id]) => id).join(',')})).then(
    found => batch.forEach(([id, done]) => done(found[id] ?? null)),
    () => batch.forEach(([id, done]) => { kept.delete(id); done(null); }));
}

// The picture of a sample, null if only its feature is stored.
export function pictureOf(id) {
  if (!kept.has(id)) {
    if (kept.size >= MOST_KEPT) kept.delete(kept.keys().next().value);
    kept.set(id, new Promise(done => {
      if (!waiting.length) setTimeout(send, TOGETHER);
      waiting.push([id, done]);
    }));
  }
  return kept.get(id);
}

// Forgets all pictures: what was erased must not stay in the page.
export const forgetPictures = () => kept.clear();

const sight = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) if (isIntersecting) { sight.unobserve(target); target.seen(); }
}, {rootMargin: '200px'});

// Calls `work` once an element comes into sight.
export function whenSeen(element, work) {
  element.seen = work;
  sight.observe(element);
}

// What a sample looks like: its picture or curves once it is in sight; words if there are none. about: "" if the words
// beside it say it.
export function shown(sample, about = '') {
  const box = el('div', {className: 'pic'});
  const words = () => box.replaceChildren(el('span', {className: 'words small', textContent: sample.source || sample.id, dir: 'auto'}));
  if (!sample.picture) { words(); return box; }
  whenSeen(box, async () => {
    const picture = await pictureOf(sample.id);
    if (!picture) { words(); return; }
    box.classList.toggle('curves', !picture.image);
    box.replaceChildren(drawing(picture, about));
  });
  return box;
}
