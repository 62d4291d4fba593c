// Streams bring more than a screen can show: what follows from it is done a few times a second.

/** Milliseconds between two calls. A timer, since a page in the background has no frames. */
const PAUSE = 33;

/** Calls `act` soon after it is asked to, and once for all that is asked meanwhile. */
export function framed(act: () => void): () => void {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    setTimeout(() => {
      isDue = false;
      act();
    }, PAUSE);
  };
}
