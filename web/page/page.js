"use strict";

// All text that comes from outside goes through textContent: a key may be called
// anything.
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const width = 720, height = 240, ceiling = height - 6;
let source = null; // of events
let shown = null; // the last snapshot
let key = null; // whose curve is shown, null: everyone's
let curve = new Map(); // the key's counts by start of a window

function connect() {
	if (source) source.close();
	const window = $("window").value;
	source = new EventSource("events" + (window ? "?window=" + encodeURIComponent(window) : ""));
	source.addEventListener("counts", (e) => {
		shown = JSON.parse(e.data);
		say("status", "live", "live");
		draw();
		if (key !== null) ask();
	});
	source.addEventListener("trouble", (e) => say("status", JSON.parse(e.data).error, "away"));
	source.onerror = () => {
		say("status", "reconnecting", "away");
		if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000); // it gives up after an error of the server
	};
}

// say changes a text only if it is another, so that a screen reader is not told again.
function say(id, text, kind) {
	const at = typeof id === "string" ? $(id) : id;
	if (kind !== undefined) at.className = kind;
	if (at.textContent !== text) at.textContent = text;
}

function draw() {
	const newest = shown.bars[shown.bars.length - 1];
	words();
	windows(shown.windows, shown.window);
	say("total", newest ? number.format(newest.n) : "0");
	say("users", newest ? number.format(newest.keys) : "0");
	say("state", newest ? newest.state : "–");
	say("minute", newest ? clock(newest.start) : "–");
	if (shown.books) {
		const lost = shown.books.lost ? ", lost " + number.format(shown.books.lost) : "";
		say("books", "late " + number.format(shown.books.late) + ", rejected " + number.format(shown.books.rejected) + lost);
	}
	behind();
	chart();
	top10(shown.top);
}

function words() {
	const what = shown.item.charAt(0).toUpperCase() + shown.item.slice(1);
	say("what", what);
	document.title = what + ", live";
	document.querySelectorAll(".item").forEach((at) => say(at, shown.item));
	document.querySelectorAll(".keys").forEach((at) => say(at, shown.keys));
	say("all", "Show all " + shown.keys);
}

function windows(all, current) {
	const select = $("window");
	if (select.options.length !== all.length) {
		select.replaceChildren(...all.map((w) => new Option(short(w), w, w === current, w === current)));
	}
}

// short writes a length without the parts that are zero: 1m0s is 1m.
const short = (w) => w.replace(/([hm])(0m)?0s$/, "$1");

// behind shows how far the frontier is behind the clock, which goes on without events.
function behind() {
	say("lag", shown && shown.frontier ? lag((Date.now() - Date.parse(shown.frontier)) / 1000) : "–");
}

function shape(kind, name, attributes) {
	const at = document.createElementNS("http://www.w3.org/2000/svg", kind);
	if (name) at.setAttribute("class", name);
	for (const [a, v] of Object.entries(attributes)) at.setAttribute(a, typeof v === "number" ? v.toFixed(2) : v);
	return at;
}

// chart draws a bar for each window, where it stands in time, and what is expected of
// those to come. Bars that are there already are moved.
function chart() {
	const svg = $("chart"), bars = shown.bars, band = key === null ? shown.band : [];
	$("expected").hidden = band.length === 0;
	$("all").hidden = key === null;
	say("title", key === null ? shown.item.charAt(0).toUpperCase() + shown.item.slice(1) + " of all " + shown.keys : shown.item.charAt(0).toUpperCase() + shown.item.slice(1) + " of " + key);
	if (bars.length === 0) {
		svg.replaceChildren();
		say("summary", "Nothing has been counted yet.");
		return;
	}
	const value = (b) => (key === null ? b.n : curve.get(b.start) || 0);
	const from = time(bars[0].start), to = Math.max(time(bars[bars.length - 1].end), ...band.map((b) => time(b.end)));
	const counted = Math.max(1, ...bars.map(value)), most = round(Math.max(counted, ...band.map((b) => b.high)));
	const x = (at) => ((at - from) / (to - from)) * width, y = (n) => height - (Math.max(0, n) / most) * ceiling;
	const old = new Map(Array.from(svg.querySelectorAll("rect"), (r) => [r.dataset.start, r]));
	const rects = bars.map((b) => {
		const left = x(time(b.start)), w = x(time(b.end)) - left;
		const rect = old.get(b.start) || shape("rect", "", {});
		const at = { x: left + w * 0.1, y: y(value(b)), width: w * 0.8, height: height - y(value(b)), rx: Math.min(3, w * 0.2) };
		for (const [name, v] of Object.entries(at)) rect.setAttribute(name, v.toFixed(2));
		rect.dataset.start = b.start;
		rect.setAttribute("class", key === null ? b.state : "user");
		const title = rect.firstChild || rect.appendChild(shape("title", "", {}));
		say(title, clock(b.start) + ": " + number.format(value(b)) + " " + shown.item + ", " + b.state);
		return rect;
	});
	const lines = [1, 0.5].map((part) => shape("line", "", { x1: 0, x2: width, y1: y(most * part), y2: y(most * part) }));
	svg.replaceChildren(...lines, ...rects, ...expected(band, x, y));
	say("first", clock(bars[0].start));
	say("last", clock(band.length ? band[band.length - 1].start : bars[bars.length - 1].start));
	say("highest", compact(most));
	say("half", compact(most / 2));
	const last = bars[bars.length - 1];
	say("summary", bars.length + " windows, at most " + number.format(counted) + " " + shown.item + ", the last " + number.format(value(last)) + ", " + last.state + "." +
		(band.length ? " The next is expected between " + number.format(Math.round(band[0].low)) + " and " + number.format(Math.round(band[0].high)) + "." : ""));
}

// expected draws the band of a forecast, and its middle.
function expected(band, x, y) {
	if (band.length === 0) return [];
	const steps = (of) => band.flatMap((b) => [[x(time(b.start)), y(of(b))], [x(time(b.end)), y(of(b))]]);
	const text = (points) => points.map((p) => p.map((v) => v.toFixed(2)).join(" "));
	const area = [...steps((b) => b.high), ...steps((b) => b.low).reverse()];
	return [
		shape("path", "band", { d: "M" + text(area).join("L") + "Z" }),
		shape("polyline", "band", { points: text(steps((b) => b.middle)).join(" ") }),
	];
}

// round returns the next number up that is easy to read off a scale.
function round(n) {
	const ten = 10 ** Math.floor(Math.log10(n));
	return ten * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * ten >= n);
}

const compact = (n) => new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(n);

// top10 keeps the buttons that are there, so that the focus stays where it is.
function top10(counts) {
	const list = $("top");
	$("none").hidden = counts.length > 0;
	while (list.children.length > counts.length) list.lastChild.remove();
	counts.forEach((c, i) => {
		let item = list.children[i];
		if (!item) {
			item = document.createElement("li");
			const button = document.createElement("button"), name = document.createElement("span"), n = document.createElement("span");
			button.type = "button";
			name.className = "name";
			n.className = "n";
			button.append(name, n);
			button.addEventListener("click", () => choose(button.dataset.key));
			item.append(button);
			list.append(item);
		}
		const button = item.firstChild;
		button.dataset.key = c.key;
		button.setAttribute("aria-pressed", String(c.key === key));
		say(button.firstChild, c.key, "name");
		say(button.lastChild, number.format(c.n), "n");
	});
}

function choose(id) {
	key = id === key ? null : id;
	curve = new Map();
	if (key !== null) ask();
	if (shown) draw();
}

// ask fetches the curve of the key.
async function ask() {
	const bars = shown.bars, id = key;
	if (bars.length === 0) return;
	const query = new URLSearchParams({ from: bars[0].start, to: bars[bars.length - 1].end, window: shown.window });
	try {
		const answer = await fetch(encodeURIComponent(shown.item) + "/" + encodeURIComponent(id) + "?" + query);
		if (!answer.ok || id !== key) return;
		curve = new Map((await answer.json())[shown.item].map((c) => [c.minute, c[shown.item]]));
		chart();
	} catch {
		// The next event asks again.
	}
}

// time reads the forms of the API: without seconds it is UTC.
const time = (s) => Date.parse(s.length === 16 ? s + "Z" : s);

function clock(s) {
	const long = shown.bars.length > 0 && time(shown.bars[0].end) - time(shown.bars[0].start) >= 20 * 3600e3;
	const options = long ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit", second: s.length === 16 ? undefined : "2-digit" };
	return new Date(time(s)).toLocaleString("en-GB", options);
}

function lag(seconds) {
	if (seconds < 120) return Math.max(0, Math.round(seconds)) + " s";
	if (seconds < 7200) return Math.round(seconds / 60) + " min";
	if (seconds < 172800) return Math.round(seconds / 3600) + " h";
	return Math.round(seconds / 86400) + " d";
}

$("window").addEventListener("change", () => {
	curve = new Map();
	connect();
});
$("all").addEventListener("click", () => choose(key));
setInterval(behind, 1000);
connect();
