// A list from which many are chosen, by mouse, touch and keyboard, as in a listbox of ARIA.

// list: the element with the options, each with an id of its own in dataset.id. changed: called with the chosen ids.
export function selection(list, changed, remove) {
  const chosen = new Set();
  let anchor = null;
  const options = () => [...list.children];

  function show() {
    for (const each of options()) each.setAttribute('aria-selected', chosen.has(each.dataset.id));
    changed([...chosen]);
  }
  function focus(option) {
    if (!option) return;
    for (const each of options()) each.tabIndex = each === option ? 0 : -1;
    option.focus();
  }
  function range(option) {  // from the anchor, if that is still there
    const all = options(), from = all.findIndex(each => each.dataset.id === anchor), to = all.indexOf(option);
    for (const each of all.slice(Math.min(from < 0 ? to : from, to), Math.max(from, to) + 1)) chosen.add(each.dataset.id);
  }
  function pick(option, through) {
    const id = option.dataset.id;
    if (through) range(option);
    else {
      if (!chosen.delete(id)) chosen.add(id);
      anchor = id;
    }
    show();
  }
  function all() {
    for (const each of options()) chosen.add(each.dataset.id);
    show();
  }
  function none() { chosen.clear(); anchor = null; show(); }

  list.addEventListener('click', event => {
    const option = event.target.closest('[role=option]');
    if (!option) return;
    pick(option, event.shiftKey);
    focus(option);
  });
  list.addEventListener('mousedown', event => { if (event.shiftKey) event.preventDefault(); });  // no text is marked
  list.addEventListener('keydown', event => {
    const found = options(), at = found.indexOf(event.target.closest('[role=option]'));
    if (at < 0) return;
    const columns = Math.max(1, found.findIndex(each => each.offsetTop > found[0].offsetTop));
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: 4 * columns,
      PageUp: -4 * columns, Home: -at, End: found.length - 1 - at}[event.key];
    if (step !== undefined) {
      const next = found[Math.min(found.length - 1, Math.max(0, at + step))];
      if (event.shiftKey) { anchor ??= found[at].dataset.id; range(next); show(); }
      focus(next);
    } else if (event.key === ' ' || event.key === 'Enter') pick(found[at], event.shiftKey);
    else if (event.key.toLowerCase() === 'a' && (event.ctrlKey || event.metaKey)) all();
    else if (event.key === 'Delete' && chosen.size) remove();
    else if (event.key === 'Escape' && chosen.size) none();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  return {
    all, none, show,
    // The options that are there now: what is gone is not chosen any more.
    keep() {
      const ids = new Set(options().map(each => each.dataset.id));
      for (const id of chosen) if (!ids.has(id)) chosen.delete(id);
      options().forEach((each, i) => { each.tabIndex = i ? -1 : 0; });
      show();
    },
    focus: at => focus(options()[Math.min(at, options().length - 1)]),
    place: () => options().indexOf(document.activeElement),
  };
}
