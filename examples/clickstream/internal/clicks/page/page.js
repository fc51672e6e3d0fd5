"use strict";

// All text that comes from outside goes through textContent: a user may be called
// anything.
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
let source = null; // of events
let shown = null; // the last that came
let user = null; // whose curve is shown, null: everyone's
let curve = new Map(); // the user's clicks by start of a window

function connect() {
	if (source) source.close();
	const window = $("window").value;
	source = new EventSource("/events" + (window ? "?window=" + encodeURIComponent(window) : ""));
	source.addEventListener("counts", (e) => {
		shown = JSON.parse(e.data);
		status("live", "live");
		draw();
		if (user !== null) ask();
	});
	source.addEventListener("trouble", (e) => status("away", JSON.parse(e.data).error));
	source.onerror = () => status("away", "reconnecting"); // EventSource tries again
}

function status(kind, text) {
	$("status").className = kind;
	if ($("status").textContent !== text) $("status").textContent = text;
}

function draw() {
	const bars = shown.minutes, newest = bars[bars.length - 1];
	windows(shown.windows, shown.window);
	$("total").textContent = newest ? number.format(newest.clicks) : "0";
	$("users").textContent = newest ? number.format(newest.users) : "0";
	$("state").textContent = newest ? newest.state : "–";
	$("minute").textContent = newest ? clock(newest.minute) : "–";
	$("lag").textContent = shown.frontier ? lag((Date.now() - Date.parse(shown.frontier)) / 1000) : "–";
	chart(bars);
	top10(shown.top);
}

function windows(all, current) {
	const select = $("window");
	if (select.options.length !== all.length) {
		select.replaceChildren(...all.map((w) => new Option(w, w, w === current, w === current)));
	}
}

// chart draws a bar for each window, where it stands in time.
function chart(bars) {
	const svg = $("chart"), width = 720, height = 240;
	if (bars.length === 0) {
		svg.replaceChildren();
		$("summary").textContent = "Nothing has been counted yet.";
		return;
	}
	const value = (b) => (user === null ? b.clicks : curve.get(b.minute) || 0);
	const from = time(bars[0].minute), to = time(bars[bars.length - 1].end);
	const most = Math.max(1, ...bars.map(value));
	const rects = bars.map((b) => {
		const x = ((time(b.minute) - from) / (to - from)) * width;
		const w = ((time(b.end) - time(b.minute)) / (to - from)) * width;
		const h = (value(b) / most) * (height - 6);
		const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
		for (const [name, v] of Object.entries({ x: x + w * 0.1, y: height - h, width: w * 0.8, height: h, rx: Math.min(3, w * 0.2) })) {
			rect.setAttribute(name, v.toFixed(2));
		}
		rect.setAttribute("class", user === null ? b.state : "user");
		const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
		title.textContent = clock(b.minute) + ": " + number.format(value(b)) + " clicks, " + b.state;
		rect.append(title);
		return rect;
	});
	svg.replaceChildren(...rects);
	$("first").textContent = clock(bars[0].minute);
	$("last").textContent = clock(bars[bars.length - 1].minute);
	$("highest").textContent = "highest " + number.format(most);
	const last = bars[bars.length - 1];
	$("summary").textContent = bars.length + " windows, at most " + number.format(most) + " clicks, the last " + number.format(value(last)) + ", " + last.state + ".";
	$("title").textContent = user === null ? "Clicks of all users" : "Clicks of " + user;
	$("all").hidden = user === null;
}

// top10 keeps the buttons that are there, so that the focus stays where it is.
function top10(users) {
	const list = $("top");
	$("none").hidden = users.length > 0;
	while (list.children.length > users.length) list.lastChild.remove();
	users.forEach((u, i) => {
		let item = list.children[i];
		if (!item) {
			item = document.createElement("li");
			const button = document.createElement("button"), name = document.createElement("span"), n = document.createElement("span");
			button.type = "button";
			name.className = "name";
			n.className = "n";
			button.append(name, n);
			button.addEventListener("click", () => choose(button.dataset.user));
			item.append(button);
			list.append(item);
		}
		const button = item.firstChild;
		button.dataset.user = u.user_id;
		button.setAttribute("aria-pressed", String(u.user_id === user));
		button.firstChild.textContent = u.user_id;
		button.lastChild.textContent = number.format(u.clicks);
	});
}

function choose(id) {
	user = id === user ? null : id;
	curve = new Map();
	if (user !== null) ask();
	if (shown) draw();
}

// ask fetches the curve of the user.
async function ask() {
	const bars = shown.minutes, id = user;
	if (bars.length === 0) return;
	const query = new URLSearchParams({ from: bars[0].minute, to: bars[bars.length - 1].end, window: shown.window });
	try {
		const answer = await fetch("/clicks/" + encodeURIComponent(id) + "?" + query);
		if (!answer.ok || id !== user) return;
		curve = new Map((await answer.json()).clicks.map((c) => [c.minute, c.clicks]));
		chart(shown.minutes);
	} catch {
		// The next event asks again.
	}
}

// time reads the forms of the API: without seconds it is UTC.
const time = (s) => Date.parse(s.length === 16 ? s + "Z" : s);

function clock(s) {
	const long = shown.minutes.length > 1 && time(shown.minutes[0].end) - time(shown.minutes[0].minute) >= 20 * 3600e3;
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
$("all").addEventListener("click", () => choose(user));
connect();
