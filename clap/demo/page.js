// Players: playback moves a line over the spectrogram, a click into it or on a time plays from there, one sound at a time.
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll(".clap-player audio")) if (audio !== event.target) audio.pause();
}, true);
document.addEventListener("timeupdate", (event) => {
  const player = event.target.closest(".clap-player");
  if (!player) return;
  const share = Math.min(event.target.currentTime / player.dataset.duration, 1);
  player.querySelector(".clap-playhead").style.left = `${100 * share}%`;
}, true);
document.addEventListener("click", (event) => {
  const picture = event.target.closest(".clap-picture"), button = event.target.closest("[data-seek]");
  const sound = (picture || button)?.closest(".clap-sound");
  if (!sound) return;
  const player = sound.querySelector(".clap-player"), audio = player.querySelector("audio");
  const box = picture?.getBoundingClientRect();
  audio.currentTime = picture ? ((event.clientX - box.left) / box.width) * player.dataset.duration : button.dataset.seek;
  audio.play();
});
