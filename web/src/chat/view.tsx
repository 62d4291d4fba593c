// The chat.
import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { route } from "../router";
import { Icon } from "../ui/icon";
import { Composer } from "./composer";
import { History } from "./history";
import { Message } from "./message";
import { Panel } from "./panel";
import { settings } from "./settings";
import { current, openConversation, problem, say, version } from "./store";
import { strategyName } from "../ui/names";

/** Closer to the end than this, the list follows what is written. */
const NEAR_END = 80;

export function ChatView() {
  const side = useSignal<"none" | "history" | "panel">("none");
  const { argument } = route.value;
  useEffect(() => {
    if (argument !== "") openConversation(argument);
  }, [argument]);
  const toggle = (which: "history" | "panel") => () =>
    (side.value = side.value === which ? "none" : which);
  const { strategy } = settings.value.search;
  return (
    <div class={`chat-view shows-${side.value}`}>
      <h1 class="visually-hidden">Chat</h1>
      <History onDone={() => (side.value = "none")} />
      <section class="talk" aria-label="Conversation">
        <Turns />
        {problem.value && (
          <p class="error" role="alert">
            {problem.value}
          </p>
        )}
        <div class="talk-foot">
          <button
            class="icon narrow-only"
            aria-expanded={side.value === "history"}
            title="Conversations"
            onClick={toggle("history")}
          >
            <Icon name="menu" label="Conversations" />
          </button>
          <Composer />
          <button
            class={strategy === "" ? "settings-toggle" : "settings-toggle on"}
            aria-expanded={side.value === "panel"}
            onClick={toggle("panel")}
          >
            <Icon name="sliders" />
            <span>{strategy === "" ? "Plain" : strategyName(strategy)}</span>
          </button>
        </div>
      </section>
      <Panel />
    </div>
  );
}

function Turns() {
  void version.value;
  const box = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const { id, turns } = current.value;
  useLayoutEffect(() => {
    follows.current = true;
  }, [id, turns.length]);
  useLayoutEffect(() => {
    const { current } = box;
    if (current && follows.current) current.scrollTop = current.scrollHeight;
  });
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current!;
    follows.current = scrollHeight - scrollTop - clientHeight < NEAR_END;
  };
  if (turns.length === 0) return <Welcome />;
  return (
    <div class="turns" ref={box} onScroll={onScroll} tabIndex={0} role="log" aria-label="Messages">
      <div class="turns-column">
        {turns.map((turn, index) => (
          <Message key={turn.id} turn={turn} isLast={isLastAnswer(index)} />
        ))}
      </div>
    </div>
  );

  /** Nothing but results of tools follows. */
  function isLastAnswer(index: number): boolean {
    return turns.slice(index + 1).every((turn) => turn.role === "tool");
  }
}

const SUGGESTIONS = [
  "What is 17 + 25 - 9? Think step by step.",
  "Write a binary search in Python.",
  "Name three uses of a paper clip.",
];

function Welcome() {
  return (
    <div class="turns welcome">
      <h2>What shall we ponder?</h2>
      <p>
        Answers come from the model behind this server. A strategy in the settings lets it search
        for a better one, and shows the search as it runs.
      </p>
      <div class="suggestions">
        {SUGGESTIONS.map((text) => (
          <button key={text} onClick={() => say(text)}>
            {text}
          </button>
        ))}
      </div>
    </div>
  );
}
