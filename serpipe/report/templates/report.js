"use strict";
const audio = JSON.parse(document.getElementById("audio").textContent);
const source = (name) => "data:audio/mpeg;base64," + audio[name];
const clip = new Audio();
const player = document.getElementById("player");
let pressed = null;

function release() {
  if (pressed) {
    pressed.setAttribute("aria-pressed", "false");
    pressed.style.setProperty("--done", "0%");
  }
  pressed = null;
}

for (const button of document.querySelectorAll("button.play")) {
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    const again = pressed === button;
    clip.pause();
    release();
    if (again) return;
    if (player) player.pause();
    pressed = button;
    button.setAttribute("aria-pressed", "true");
    clip.src = source(button.dataset.clip);
    clip.play().catch(release);
  });
}
clip.addEventListener("ended", release);
clip.addEventListener("timeupdate", () => {
  if (pressed) pressed.style.setProperty("--done", (100 * clip.currentTime) / (clip.duration || 1) + "%");
});

if (player) {
  const timeline = document.getElementById("timeline");
  const head = document.getElementById("head");
  const track = head.parentElement;
  const end = Number(timeline.dataset.end);
  player.src = source("episode");
  player.addEventListener("play", () => { clip.pause(); release(); });
  player.addEventListener("timeupdate", () => {
    head.hidden = false;
    head.style.left = (100 * player.currentTime) / end + "%";
  });
  timeline.addEventListener("click", (event) => {
    const box = track.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    if (share < 0) return;
    player.currentTime = Math.min(share, 1) * end;
    player.play();
  });
}

const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

root.dataset.ready = "yes";
