// Says that the server is away, and when the page looks again.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { connection, look, nextTry } from "../api/connection";

const TEXTS = {
  ok: "",
  lost: "The server cannot be reached.",
  loading: "The server is loading its model.",
  draining: "The server is shutting down.",
  failed: "The server has failed; it must be started again.",
};

export function Notice() {
  const now = useSignal(performance.now());
  const state = connection.value;
  useEffect(() => {
    if (state === "ok") return;
    const timer = setInterval(() => (now.value = performance.now()), 500);
    return () => clearInterval(timer);
  }, [state]);
  if (state === "ok") return null;
  const next = nextTry.value;
  const seconds = next === null ? 0 : Math.max(Math.ceil((next - now.value) / 1000), 1);
  return (
    <div class="notice" role="status">
      <span>
        {TEXTS[state]} {next === null ? "Looking…" : `Looking again in ${seconds} s.`}
      </span>
      <button onClick={() => void look()}>Look now</button>
    </div>
  );
}
