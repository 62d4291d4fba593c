// Where the user writes.
import { signal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { connection } from "../api/connection";
import { Icon } from "../ui/icon";
import { isWriting, say, stop } from "./store";

/** Kept while the user looks at another view. */
const draft = signal("");
const MOST_PIXELS = 240;

export function Composer() {
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    const { current } = area;
    if (!current) return;
    current.style.height = "auto";
    current.style.height = `${Math.min(current.scrollHeight + 2, MOST_PIXELS)}px`;
  });
  const send = () => {
    if (isWriting.value || draft.value.trim() === "") return;
    say(draft.value.trim());
    draft.value = "";
  };
  const isOff = !isWriting.value && (draft.value.trim() === "" || connection.value === "lost");
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        if (isWriting.value) stop();
        else send();
      }}
    >
      <label for="composer-text" class="visually-hidden">
        Message
      </label>
      <textarea
        id="composer-text"
        ref={area}
        rows={1}
        value={draft.value}
        placeholder="Ask something"
        onInput={(event) => (draft.value = event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          send();
        }}
      />
      <button class="primary round" type="submit" disabled={isOff}>
        <Icon
          name={isWriting.value ? "stop" : "send"}
          label={isWriting.value ? "Stop" : "Send"}
        />
      </button>
    </form>
  );
}
