// Plays the videos of each player in step, and moves the line between the original and the edited clip.
(() => {
  const inside = (player) => [...player.querySelectorAll("video")];
  const running = new WeakMap(); // false: somebody paused it
  const follow = () => {
    for (const player of document.querySelectorAll(".ua-player")) {
      const [leader, ...others] = inside(player);
      if (!leader || leader.readyState < 2) continue;
      if (!running.has(player)) running.set(player, !matchMedia("(prefers-reduced-motion: reduce)").matches);
      const plays = running.get(player);
      for (const video of [leader, ...others]) {
        if (plays && video.paused) video.play().catch(() => {});
        if (!plays && !video.paused) video.pause();
      }
      for (const video of others)
        if (Math.abs(video.currentTime - leader.currentTime) > 0.05 && !video.seeking) video.currentTime = leader.currentTime;
      const seek = player.querySelector(".ua-seek");
      if (seek && document.activeElement !== seek && leader.duration) seek.value = (1000 * leader.currentTime) / leader.duration;
      const button = player.querySelector(".ua-play"), text = plays ? "Pause" : "Play";
      if (button && button.textContent !== text) button.textContent = text;
    }
    requestAnimationFrame(follow);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".ua-play");
    if (!button) return;
    const player = button.closest(".ua-player");
    running.set(player, !running.get(player));
  });
  document.addEventListener("input", (event) => {
    const input = event.target;
    if (input.matches?.(".ua-wipe")) input.closest(".ua-over").style.setProperty("--ua-wipe", input.value + "%");
    if (input.matches?.(".ua-seek")) {
      const player = input.closest(".ua-player");
      running.set(player, false);
      for (const video of inside(player)) if (video.duration) video.currentTime = (input.value / 1000) * video.duration * 0.999;
    }
  });
  requestAnimationFrame(follow);
})();
