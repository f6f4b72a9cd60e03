
// The loop is poll(): ask the node, draw what it says, again. What is drawn is built anew each time and then
// laid over what is there (morph), so that selections, focus and scrolling stay.
// Whatever a node says becomes text or an attribute's value here, never markup: names are written by others.

const every = 2000, often = 500, patience = 5000; // ms
const $ = id => document.getElementById(id);
const said = { status: null, jobs: null, jobsError: '', load: null, tasks: null }; // the node's last words
const chart = { at: null, width: 0 };                                // the column that is pointed at
const job = { picked: '', ran: '', timer: 0, asking: false };            // whose tasks are shown: the one that was clicked, else the last that ran
let heard = 0, failing = '', skew = 0, polls = 0, timer = 0, asking = false;

// ---- elements

function make(tag, attrs, ...kids) {
  const svg = ['svg', 'path', 'line', 'text'].includes(tag);
  const el = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attrs || {})) if (value !== undefined && value !== false && value !== '') el.setAttribute(name, value);
  el.append(...kids.flat(9).filter(k => k !== null && k !== undefined && k !== false).map(k => k instanceof Node ? k : String(k)));
  return el;
}

// morph makes have like want, and keeps what is alike.
function morph(have, want) {
  if (have.nodeType !== want.nodeType || have.nodeName !== want.nodeName) return have.replaceWith(want);
  if (have.nodeType === Node.TEXT_NODE) { if (have.data !== want.data) have.data = want.data; return; }
  for (const { name } of [...have.attributes]) if (!want.hasAttribute(name)) have.removeAttribute(name);
  for (const { name, value } of want.attributes) if (have.getAttribute(name) !== value) have.setAttribute(name, value);
  fill(have, [...want.childNodes]);
}

function fill(el, kids) {
  while (el.childNodes.length > kids.length) el.lastChild.remove();
  kids.forEach((kid, i) => i < el.childNodes.length ? morph(el.childNodes[i], kid) : el.append(kid));
}

const hidden = text => make('span', { class: 'vh' }, text);
const tag = (text, colour, title) => make('span', { class: 'tag ' + (colour || ''), title }, text);
const bar = (value, max, label, low) => make('progress', { value: Math.min(value, max), max: Math.max(max, 1), 'aria-label': label, class: low && 'low' });

function table(head, rows, caption) {
  return [make('table', { 'aria-label': caption },
    make('thead', null, make('tr', null, head.map(([text, cls, title]) => make('th', { scope: 'col', class: cls, title }, text)))),
    make('tbody', null, rows))];
}
const td = (cls, ...kids) => make('td', { class: cls }, ...kids);
const th = (...kids) => make('th', { scope: 'row' }, ...kids);

// ---- words

const whole = new Intl.NumberFormat('en');
const count = n => whole.format(Math.round(n));
function short(n) {
  for (const [unit, name] of [[1e9, 'G'], [1e6, 'M'], [1e4, 'k']]) if (n >= unit) { const v = n / (name === 'k' ? 1e3 : unit); return v.toFixed(v < 10 ? 1 : 0) + name; }
  return count(n);
}
const rate = n => n > 0 && n < 10 ? n.toFixed(1) : count(n);
function bytes(n) {
  let i = 0;
  for (; n >= 1024 && i < 5; i++) n /= 1024;
  return (i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)) + '\u2009' + ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][i];
}
const digits = v => v.toFixed(v < 10 ? 1 : 0);
const micros = us => !us ? '–' : us < 1000 ? Math.round(us) + '\u2009µs' : us < 1e6 ? digits(us / 1e3) + '\u2009ms' : digits(us / 1e6) + '\u2009s';
function span(ms, roughly) {
  const s = Math.round(ms / 1000);
  if (s < 60) return s + ' s';
  if (s < 3600) return Math.floor(s / 60) + ' min' + (roughly ? '' : ' ' + s % 60 + ' s');
  if (s < 86400) return Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min';
  return Math.floor(s / 86400) + ' d ' + Math.floor(s % 86400 / 3600) + ' h';
}
const several = (n, what) => `${count(n)} ${what}${n === 1 ? '' : 's'}`;
const nodeOf = (shard, replica) => (shard.replicas.find(r => r.id === replica) || { node: replica }).node;

// ---- charts

const series = ['reads', 'writes', 'errors', 'read_p50_us', 'read_p99_us', 'write_p50_us', 'write_p99_us'];

// take adds a page of history to what is known, or begins anew where it does not follow.
function take(h) {
  const had = said.load;
  if (!had || h.first !== had.first + had.reads.length) { said.load = h; return; }
  for (const s of series) had[s].push(...h[s]);
  const over = Math.max(0, had.reads.length - columns);
  for (const s of series) had[s].splice(0, over);
  had.first += over;
}
const columns = 300, tall = 92, floor = 14, top = 8;

function nice(most) { // the next of 1, 2, 5, 10, …
  const unit = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 5, 10].map(m => m * unit).find(v => v >= most);
}

function plot(title, sub, a, b, y, grid, figures) {
  const width = chart.width, left = 44, right = width - 6, h = said.load;
  const x = i => right - (a.length - 1 - i) * (right - left) / (columns - 1);
  // A logarithm has no place for 0: where nothing happened there is no line.
  const line = values => { let d = '', on = false; values.forEach((v, i) => { const p = y(v); if (p === null) on = false; else { d += (on ? 'L' : 'M') + x(i).toFixed(1) + ' ' + p.toFixed(1) + (on ? '' : 'h.01'); on = true; } }); return d; };
  const far = h ? (columns - 1) * h.every_ms / 60000 : 10;
  const at = chart.at === null ? null : a.length - 1 - Math.round((right - chart.at) * (columns - 1) / (right - left));
  const pointed = at !== null && at >= 0 && at < a.length ? at : null;
  const shown = pointed === null ? a.length - 1 : pointed;
  return make('div', { class: 'card' },
    make('h2', null, title, ' ', make('span', { class: 'sub' }, pointed === null ? sub : span((a.length - 1 - pointed) * h.every_ms) + ' ago')),
    make('p', { class: 'figures' }, figures(shown)),
    make('svg', { viewBox: `0 0 ${width} ${tall}`, class: 'plot', 'aria-hidden': 'true' },
      grid.map(([value, text]) => [make('line', { class: 'grid', x1: left, x2: right, y1: y(value), y2: y(value) }), make('text', { x: left - 6, y: y(value) + 3.5, 'text-anchor': 'end' }, text)]),
      make('text', { x: left, y: tall - 3 }, `${Math.round(far)} min ago`), make('text', { x: right, y: tall - 3, 'text-anchor': 'end' }, 'now'),
      pointed !== null && make('line', { class: 'at', x1: x(pointed), x2: x(pointed), y1: top, y2: tall - floor }),
      make('path', { class: 'b', d: line(b) }), make('path', { class: 'a', d: line(a) })));
}
const figure = (cls, value, what) => make('span', { class: cls }, cls && make('i', { class: 'key' }), value, ' ', make('small', null, what));

function rates() {
  const h = said.load, most = nice(Math.max(1, ...h.reads, ...h.writes)), y = v => tall - floor - v / most * (tall - floor - top);
  return plot('Commands on keys', 'a second', h.reads, h.writes, y, [[0, '0'], [most / 2, most > 1 ? short(most / 2) : ''], [most, short(most)]],
    i => [figure('a', rate(h.reads[i] || 0), 'reads'), figure('b', rate(h.writes[i] || 0), 'writes'), h.errors[i] > 0 && make('span', { class: 'red' }, rate(h.errors[i]), ' ', make('small', null, 'errors'))]);
}

function times(what, p50, p99) {
  const all = [...p50, ...p99].filter(v => v > 0), low = 10 ** Math.floor(Math.log10(Math.min(1000, ...all))), high = Math.max(low * 100, 10 ** Math.ceil(Math.log10(Math.max(1, ...all))));
  const y = v => v <= 0 ? null : tall - floor - Math.log10(Math.max(v, low) / low) / Math.log10(high / low) * (tall - floor - top);
  const grid = [];
  for (let v = low; v <= high; v *= 10) grid.push([v, v < 1000 ? v + ' µs' : v < 1e6 ? v / 1e3 + ' ms' : v / 1e6 + ' s']);
  return plot('Latency of ' + what, 'slowest node', p50, p99, y, grid.length > 5 ? grid.filter((_, i) => i % 2 === 0) : grid,
    i => [figure('a', micros(p50[i]), 'p50'), figure('b', micros(p99[i]), 'p99')]);
}

function data(s) {
  const alive = s.nodes.filter(n => n.alive), least = alive.filter(n => n.disk_size).sort((a, b) => a.disk_free / a.disk_size - b.disk_free / b.disk_size)[0];
  const sum = (list, f) => list.reduce((t, v) => t + (f(v) || 0), 0), uncounted = s.shards.filter(sh => !sh.leader).length;
  return make('div', { class: 'card' }, make('h2', null, 'Data'), make('dl', null,
    make('dt', null, 'keys'), make('dd', null, (uncounted ? 'at least ' : '') + count(sum(s.shards, sh => sh.records))),
    make('dt', null, 'states'), make('dd', null, bytes(sum(s.shards, sh => sh.bytes))),
    make('dt', null, 'in all replicas'), make('dd', null, bytes(sum(alive, n => n.state_bytes))),
    make('dt', null, 'logs'), make('dd', null, bytes(sum(alive, n => n.load && n.load.log_bytes))),
    least && [make('dt', null, 'fullest disk'), make('dd', { class: least.disk_low ? 'red' : '' }, `${least.id}: ${bytes(least.disk_free)} free`)]));
}

function drawCharts() {
  if (!said.load || !said.status) return;
  const h = said.load;
  const measure = () => Math.max(200, Math.round(($('charts').querySelector('svg') || {}).clientWidth || 300));
  do { // once more when it is known how wide they are
    chart.width = measure();
    fill($('charts'), [rates(), times('reads', h.read_p50_us, h.read_p99_us), times('writes', h.write_p50_us, h.write_p99_us), data(said.status)]);
  } while (chart.width !== measure());
}

// ---- the parts of the page

// runs writes ascending numbers as 0–3, 7.
function runs(ids) {
  const out = [];
  ids.forEach((id, i) => i && id === ids[i - 1] + 1 ? out[out.length - 1][1] = id : out.push([id, id]));
  return out.map(([a, b]) => a === b ? a : a + (b === a + 1 ? ', ' : '–') + b).join(', ');
}

// alarms: shards with one and the same problem share a line.
function drawAlarms(s) {
  const shards = new Map(), told = new Set();
  for (const sh of s.shards) if (sh.problem) {
    told.add(`shard ${sh.id}: ${sh.problem}`);
    shards.set(sh.problem, [...(shards.get(sh.problem) || []), sh.id]);
  }
  const list = s.problems.filter(p => !told.has(p)).map(p => ['bad', p]);
  for (const [problem, ids] of shards) list.push(['bad', `shard${ids.length > 1 ? 's' : ''} ${runs(ids)}: ${problem}`]);
  const order = ([, p]) => p.includes('no leader') ? 0 : 1;
  list.sort((a, b) => order(a) - order(b));
  for (const n of s.nodes) if (n.alive && n.disk_low && !n.disk_full) list.push(['warn', `node ${n.id}: the disk fills up (${bytes(n.disk_free)} free); it hands its leaderships over`]);
  for (const n of s.notes) list.push(['note', n]);
  fill($('alarms'), list.map(([cls, text]) => make('p', { class: 'alarm ' + cls }, text)));
  const bad = list.filter(([cls]) => cls === 'bad').length;
  fill($('verdict'), [document.createTextNode(s.healthy ? 'All is well' : several(Math.max(bad, 1), 'problem'))]);
  $('verdict').className = s.healthy ? 'good' : 'bad';
  document.title = (s.healthy ? '' : '(!) ') + 'Abacus ' + s.node;
}

function stateOf(n) {
  if (!n.alive) return [tag('down', 'red'), n.dead && tag('taken for dead', 'amber', 'its replicas are made anew elsewhere')];
  return [tag('alive', 'green'), n.stopping && tag('stopping', 'amber'), n.draining ? tag('draining', 'amber', n.successor && 'to ' + n.successor) : n.cordoned && tag('cordoned', 'amber')];
}

function drawNodes(s) {
  const zones = s.nodes.some(n => n.zone), dash = '–';
  const head = [['Node'], ['State'], ...(zones ? [['Zone']] : []), ['Leads', 'n', 'shards that it leads'], ['Replicas', 'n'], ['Reads/s', 'n'], ['Writes/s', 'n'], ['Read p99', 'n'], ['Write p99', 'n'], ['Errors/s', 'n'], ['Clients', 'n', 'open RESP connections'],
    ['Disk'], ['Log', 'n', 'on disk'], ['States', 'n', 'on disk'], ['Uptime', 'n'], ['Version']];
  fill($('nodes'), table(head, s.nodes.map(n => {
    const l = n.alive && n.load, http = n.addrs.http;
    return make('tr', { 'data-node': n.id, title: `HTTP ${http}, clients ${n.addrs.client}, Redis Cluster ${n.addrs.cluster}, peers ${n.addrs.peer}` }, th(n.id === s.node ? [n.id, make('span', { class: 'soft' }, ' (asked)')] : pageOf(http) ? make('a', { href: pageOf(http) }, n.id) : n.id), td('', stateOf(n)), zones && make('td', { class: 'long', title: n.zone }, n.zone || dash),
      ...(n.alive ? [td('n', n.leads), td('n', n.replicas), ...(l ? [td('n', rate(l.reads)), td('n', rate(l.writes)), td('n', micros(l.read_p99_us)), td('n', micros(l.write_p99_us)), td(l.errors > 0 ? 'n red' : 'n', rate(l.errors)), td('n', count(l.clients))] : Array.from({ length: 6 }, () => td('n soft', dash))),
      n.disk_size ? td('', bar(n.disk_size - n.disk_free, n.disk_size, `disk of ${n.id}, used`, n.disk_low || n.disk_full), bytes(n.disk_free) + ' free') : td('soft', dash),
      td('n', l && l.log_bytes ? bytes(l.log_bytes) : dash), td('n', bytes(n.state_bytes)), td('n', span(n.uptime_ms, true))]
        : [make('td', { class: 'red', colspan: 12 }, n.heard_ms >= 0 ? `last heard ${span(n.heard_ms)} ago` : `not heard since ${s.node} was started`)]),
      td('soft', n.version || dash));
  }), 'Nodes'));
}

// pageOf is the page of another node, if that is an address at all.
const pageOf = addr => /^(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d+$/.test(addr || '') ? `${location.protocol === 'https:' ? 'https' : 'http'}://${addr}/` : '';

const marks = { leader: 'L', follower: '', learner: '+', missing: '?', down: '×' };

function cell(r, move) {
  if (!r) return td('c soft', hidden('none'));
  const arriving = move && move.to === r.id && r.state === 'missing'; // its node has not opened it yet
  const state = arriving ? 'learner' : r.state in marks ? r.state : 'missing';
  return make('td', { class: 'c', title: `replica ${r.id} on ${r.node}: ${arriving ? 'arriving' : r.state}${r.voter ? '' : ', no vote'}, applied ${count(r.applied)}${r.lag ? ', ' + several(r.lag, 'entry').replace('entrys', 'entries') + ' behind by its last word, half a second old' : ''}`, 'data-state': state },
    make('b', { class: 'm ' + state, 'aria-hidden': 'true' }, marks[state]), hidden(arriving ? 'arriving' : r.state), r.lag > 0 && make('span', { class: 'lag' + (r.lag < 1000 ? ' soft' : '') }, '−' + short(r.lag)));
}

const quietly = (n, what) => make('td', { class: 'n' }, n === null ? make('span', { class: 'soft', title: what }, '?') : n);

function drawShards(s) {
  const only = $('only').checked, moves = sh => sh.move || (s.slot_moves || []).some(m => m.from === sh.id || m.to === sh.id), list = s.shards.filter(sh => !only || !sh.healthy || moves(sh));
  if (!list.length) return fill($('shards'), [make('p', { class: 'empty' }, 'No shard is sick, and none moves.')]);
  const words = list.some(sh => sh.problem || sh.move);
  const head = [['Shard', 'n'], ['Slots'], ...s.nodes.map(n => [n.id, 'c at' + (n.alive ? '' : ' red')]), ['Term', 'n'], ['Keys', 'n'], ['Size', 'n', "the leader's state, in use on disk"], ...(words ? [['', 'fill']] : [])];
  fill($('shards'), table(head, list.map(sh => {
    const unknown = 'known by the leader only, and there is none';
    return make('tr', { 'data-shard': sh.id }, make('th', { scope: 'row', class: 'n' }, sh.id), make('td', { class: 'long soft', title: sh.slots }, sh.slots.replaceAll('-', '–').replaceAll(',', ', ') || '–'),
      s.nodes.map(n => cell(sh.replicas.find(r => r.node === n.id), sh.move)), quietly(sh.leader ? count(sh.term) : null, unknown), quietly(sh.leader ? count(sh.records) : null, unknown), quietly(sh.leader ? bytes(sh.bytes) : null, unknown),
      words && td('wrap ' + (sh.problem ? 'red' : 'soft'), sh.problem || (sh.move ? `moves from ${nodeOf(sh, sh.move.from)} to ${nodeOf(sh, sh.move.to)}` : '')));
  }), 'Shards'));
}

// drawMoves: replicas on their way to other nodes, then slots on their way to other shards.
function drawMoves(s) {
  const replicas = s.shards.filter(sh => sh.move), slots = s.slot_moves || [];
  $('moves-section').hidden = !replicas.length && !slots.length;
  const copied = (sent, size, what) => size ? td('', bar(sent || 0, size, what), `${bytes(sent || 0)} of ${bytes(size)}`) : td('soft', '–');
  const rows = replicas.map(sh => {
    const m = sh.move;
    return make('tr', { 'data-move': sh.id }, th(`replica of shard ${sh.id}`), td('', nodeOf(sh, m.from)), td('', nodeOf(sh, m.to)),
      copied(m.copy_sent, m.copy_size, `copy of shard ${sh.id}`), td('wrap', m.paused && [tag('paused', 'amber'), ' '], m.state));
  });
  for (const m of slots) {
    const text = m.slots.replaceAll('-', '–').replaceAll(',', ', ');
    rows.push(make('tr', { 'data-slot-move': m.id }, make('th', { scope: 'row', class: 'long', title: `slot move ${m.id}: ${text}` }, 'slots ' + text), td('', 'shard ' + m.from), td('', 'shard ' + m.to),
      copied(m.sent, m.total, `copy of slot move ${m.id}`), td('wrap', m.cancelled ? [tag('cancelled', 'amber'), ' '] : m.paused && [tag('paused', 'amber'), ' '], m.state !== 'paused' && m.state)));
  }
  fill($('moves'), table([['What'], ['From'], ['To'], ['Copied'], ['State', 'fill']], rows, 'Moves in progress'));
}

function drawJobs() {
  if (said.jobsError) return fill($('jobs'), [make('p', { class: 'empty amber' }, 'Jobs are not known now: ' + said.jobsError)]);
  if (!said.jobs) return;
  if (!said.jobs.length) return fill($('jobs'), [make('p', { class: 'empty' }, 'None yet. Start one with abacus job submit.')]);
  const done = j => j.finished_ms > 0, list = [...said.jobs].sort((a, b) => done(a) - done(b) || b.submitted_ms - a.submitted_ms);
  const shown = list.filter((j, i) => !done(j) || i < 20), more = list.length - shown.length, now = Date.now() + skew;
  const colours = { succeeded: 'green', failed: 'red', cancelled: 'amber' };
  fill($('jobs'), [...table([['Job'], ['State'], ['What'], ['Tasks'], ['Keys', 'n'], ['Took', 'n'], ['Result', 'fill']], shown.map(j => {
    const p = j.progress, f = j.spec, what = `${f.reduce || '?'} of ${f.flat_map ? f.flat_map + ', ' : ''}${f.map || 'values'}${f.as ? ' as ' + f.as : ''}${f.group_by ? ' by ' + f.group_by : ''} under ${JSON.stringify(f.prefix || '')}${f.filter ? ' if ' + f.filter : ''}`;
    // A list is long, and its numbers are not exact here.
    const answer = j.error || (j.result === undefined ? '' : Array.isArray(j.result) ? several(j.result.length, 'row') + ': abacus job result ' + j.id : typeof j.result === 'object' ? JSON.stringify(j.result) : String(j.result));
    return make('tr', { 'data-job': j.id }, th(make('button', { type: 'button', class: 'pick', 'data-pick': j.id, 'aria-pressed': String(j.id === chosen()), title: 'show its tasks' }, j.id), j.spec.name && make('span', { class: 'soft' }, ' ' + j.spec.name)), td('', tag(j.state, colours[j.state])), make('td', { class: 'long', title: what }, what),
      td('', bar(done(j) && !j.error ? 1 : p.share || (p.tasks ? p.tasks_done / p.tasks : 0), 1, 'done'), `${count(p.tasks_done)} of ${count(p.tasks)}`), td('n', count(p.records)),
      td('n', span((done(j) ? j.finished_ms : now) - (j.started_ms || j.submitted_ms))), make('td', { class: 'long ' + (j.error ? 'red' : ''), title: answer }, answer));
  }), 'Jobs'), ...(more > 0 ? [make('p', { class: 'empty' }, `and ${several(more, 'older job')}`)] : [])]);
}

// chosen is the job whose tasks are shown, if there is one.
function chosen() {
  const jobs = said.jobs || [], known = id => jobs.some(j => j.id === id), running = jobs.find(j => j.state === 'running');
  if (running) job.ran = running.id;
  return known(job.picked) ? job.picked : known(job.ran) ? job.ran : '';
}

const mostTasks = 1000; // squares that are drawn for a node

const ended = t => ['succeeded', 'failed', 'cancelled'].includes(t.state);

// drawTasks shows each task of the chosen job as a square on the node that has it.
function drawTasks() {
  const t = said.tasks, id = chosen(), about = (said.jobs || []).find(j => j.id === id);
  $('tasks-section').hidden = !t || !about || t.id !== id;
  if ($('tasks-section').hidden) return;
  const rows = new Map([['', []]]), failed = {};
  for (const n of said.status ? said.status.nodes : []) rows.set(n.id, []);
  for (const s of t.shards) for (const k of s.tasks || []) {
    if (!rows.has(k.node || '')) rows.set(k.node, []);
    rows.get(k.node || '').push([s, k]);
    for (const n of k.failed_on || []) failed[n] = (failed[n] || 0) + 1;
  }
  fill($('tasks-title'), [document.createTextNode(`Tasks of job ${id}${about.spec.name ? ', ' + about.spec.name : ''}: ${count(t.progress.tasks_done)} of ${count(t.progress.tasks)} done`)]);
  fill($('tasks'), [...table([['Node'], ['Tasks', 'fill'], ['Running', 'n'], ['Done', 'n'], ['Failed', 'n'], ['Keys', 'n']], [...rows].filter(([n, list]) => n || list.length).map(([n, list]) => {
    const done = list.filter(([, k]) => k.done), running = n ? list.length - done.length : 0;
    return make('tr', { 'data-on': n || 'nobody' }, th(n || make('span', { class: 'soft' }, ended(t) ? 'not done' : 'no node yet')),
      make('td', { class: 'tasks' }, list.slice(0, mostTasks).map(([s, k]) => {
        const state = k.done ? 'done' : n ? 'running' : ended(t) ? 'not done' : 'waiting', again = (k.failed_on || []).length > 0;
        return make('i', { class: `t ${state}${again ? ' again' : ''}`, 'data-task': `${s.shard}/${k.id}`, 'data-state': state,
          title: `shard ${s.shard}, task ${k.id}: slots ${k.from}–${k.to}, ${state}${k.role ? ' as ' + k.role : ''}, ${several(k.records, 'key')}${again ? ', failed on ' + k.failed_on.join(', ') : ''}` });
      }), list.length > mostTasks && make('span', { class: 'soft' }, ` and ${count(list.length - mostTasks)} more`), hidden(`${several(list.length, 'task')}`)),
      td('n', count(running)), td('n', count(done.length)), td('n' + (failed[n] ? ' amber' : ''), count(failed[n] || 0)), td('n', count(list.reduce((sum, [, k]) => sum + (k.records || 0), 0))));
  }), 'Tasks of a job by node'), ...(t.tasks_omitted ? [make('p', { class: 'empty' }, `${several(t.tasks_omitted, 'task')} more, too many for the record`)] : [])]);
}

function draw() {
  const s = said.status;
  if (s) {
    fill($('where'), [document.createTextNode(`cluster ${s.cluster_id}, ${several(s.nodes.length, 'node')}, ${several(s.shards.length, 'shard')}, ${several(s.replicas_wanted, 'replica')} wanted; seen by ${s.node}`)]);
    drawAlarms(s); drawNodes(s); drawMoves(s); drawShards(s); drawCharts();
  }
  drawJobs();
  drawTasks();
  drawAge();
}

// drawAge says how old the picture is, and offers other nodes when this one is silent.
function drawAge() {
  const ago = heard ? span(performance.now() - heard) + ' ago' : 'never';
  $('main').className = failing && heard ? 'stale' : '';
  fill($('age'), [document.createTextNode(failing ? '' : heard ? 'updated ' + ago : 'asking…')]);
  if (!failing) return fill($('gone'), []);
  const others = (said.status ? said.status.nodes : []).filter(n => n.id !== said.status.node && pageOf(n.addrs.http));
  fill($('gone'), [make('p', { class: 'alarm bad' }, failing, heard ? ` What is below is what it said last, ${ago}.` : '', others.length ? ' Ask another node: ' : '', others.map((n, i) => [i ? ', ' : '', make('a', { href: pageOf(n.addrs.http) }, n.id)]))]);
  $('verdict').className = '';
  fill($('verdict'), [document.createTextNode('not known')]);
}

// ---- asking

// exactly keeps what a job has counted as it is written, where the browser can: its integers are longer than a double's.
const exactly = (key, value, context) => key === 'result' && typeof value === 'number' && !Number.isSafeInteger(value) && context && context.source ? context.source : value;

// ask fetches a document; its error is a sentence.
async function ask(path) {
  let answer;
  try {
    answer = await fetch(path, { cache: 'no-store', headers: { Accept: 'application/json' }, signal: AbortSignal.timeout(patience) });
  } catch {
    throw new Error(`${said.status ? 'Node ' + said.status.node : 'The node'} at ${location.host} does not answer.`);
  }
  if (answer.status === 401 || answer.status === 403) throw new Error(`The node at ${location.host} wants to know who asks (${answer.status}): reload this page and give a name and a password that may look.`);
  let body = {};
  try { body = JSON.parse(await answer.text(), exactly); } catch { /* no JSON: the status says it */ }
  if (!answer.ok) throw new Error(body.error || `The node at ${location.host} answers ${answer.status}.`);
  const date = Date.parse(answer.headers.get('Date'));
  if (date) skew = date - Date.now();
  return body;
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return; // visibilitychange goes on
  asking = true;
  try {
    const from = said.load ? said.load.first + said.load.reads.length : 0;
    const [status, load] = await Promise.all([ask('v1/status'), ask('v1/load?since=' + from)]);
    take(load);
    said.status = status;
    heard = performance.now();
    failing = '';
    draw();
    // Jobs are read through shard 0, which may be without a leader: the rest does not wait for them.
    const running = said.jobs && said.jobs.some(j => !j.finished_ms);
    if (running || polls++ % 3 === 0) {
      try { said.jobs = await ask('v1/jobs'); said.jobsError = ''; watch(); } catch (err) { said.jobsError = err.message; }
      draw();
    }
  } catch (err) {
    failing = err.message;
    draw();
  } finally {
    asking = false;
    timer = setTimeout(poll, every);
  }
}

// watch follows the chosen job's tasks, until it has ended and they are known.
async function watch() {
  clearTimeout(job.timer);
  const id = chosen();
  if (document.hidden || job.asking || !id || said.tasks && said.tasks.id === id && ended(said.tasks)) return;
  job.asking = true;
  let wait = often;
  try { said.tasks = await ask(`v1/jobs/${encodeURIComponent(id)}/tasks`); } catch { wait = every; /* poll says what is wrong */ }
  job.asking = false;
  drawTasks();
  job.timer = setTimeout(watch, wait);
}

$('jobs').addEventListener('click', e => { const b = e.target.closest('[data-pick]'); if (b) { job.picked = b.dataset.pick; draw(); watch(); } });
document.addEventListener('visibilitychange', poll);
$('only').addEventListener('change', draw);
addEventListener('resize', drawCharts);
$('charts').addEventListener('pointermove', e => { const svg = e.target.closest('svg'); chart.at = svg ? e.clientX - svg.getBoundingClientRect().left : null; drawCharts(); });
$('charts').addEventListener('pointerleave', () => { chart.at = null; drawCharts(); });
setInterval(() => { if (!document.hidden) drawAge(); }, 1000);
poll();
