// Play, pause and the slider of time.
import { Select } from "../ui/fields";
import { Icon } from "../ui/icon";
import type { Replay } from "./replay";
import type { SearchRun } from "./run";

const SPEEDS = [
  ["0.5", "½×"],
  ["1", "1×"],
  ["2", "2×"],
  ["4", "4×"],
] as const;

export function ReplayBar({ run, replay }: { run: SearchRun; replay: Replay }) {
  void run.version.value;
  const { duration, length } = run.log;
  if (length === 0 || run.state.value === "running") return null;
  const at = replay.at.value ?? duration;
  const isPlaying = replay.isPlaying.value;
  const seconds = `${(at / 1000).toFixed(1)} of ${(duration / 1000).toFixed(1)} s`;
  return (
    <div class="replay" role="group" aria-label="Replay">
      <button
        class="icon"
        title={isPlaying ? "Pause" : "Replay"}
        onClick={() => (isPlaying ? replay.pause() : replay.play())}
      >
        <Icon name={isPlaying ? "pause" : "play"} label={isPlaying ? "Pause" : "Replay"} />
      </button>
      <button class="icon" title="Back by one event" onClick={() => replay.step(-1)}>
        <Icon name="left" label="Back by one event" />
      </button>
      <input
        type="range"
        min={0}
        max={Math.max(duration, 1)}
        step="any"
        value={at}
        aria-label="Time of the search"
        aria-valuetext={seconds}
        onInput={(event) => {
          replay.pause();
          replay.seek(Number(event.currentTarget.value));
        }}
      />
      <button class="icon" title="On by one event" onClick={() => replay.step(1)}>
        <Icon name="right" label="On by one event" />
      </button>
      <span class="replay-time">{seconds}</span>
      <Select
        label="Speed"
        isBare
        value={String(replay.speed.value)}
        options={SPEEDS}
        onChange={(value) => (replay.speed.value = Number(value))}
      />
    </div>
  );
}
