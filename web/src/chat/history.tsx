// The list of conversations.
import { useSignal } from "@preact/signals";
import { told } from "../api/client";
import { go, href } from "../router";
import { download } from "../ui/copy";
import { Icon } from "../ui/icon";
import { type Conversation, exported, imported } from "./conversation";
import { add, conversations, current, drop, rename, startNew, version } from "./store";

export function History({ onDone }: { onDone: () => void }) {
  void version.value;
  const error = useSignal("");
  const open = async (file: File | undefined) => {
    error.value = "";
    if (!file) return;
    try {
      add(imported(await file.text()));
    } catch (problem) {
      error.value = told(problem);
    }
  };
  return (
    <nav class="history" aria-label="Conversations">
      <button
        class="new-chat"
        onClick={() => {
          startNew();
          go("chat");
          onDone();
        }}
      >
        <Icon name="plus" /> New chat
      </button>
      <ul>
        {conversations.value.map((it) => (
          <Item key={it.id} conversation={it} onDone={onDone} />
        ))}
      </ul>
      {conversations.value.length === 0 && (
        <p class="hint">Conversations stay in this browser.</p>
      )}
      {error.value && (
        <p class="error" role="alert">
          {error.value}
        </p>
      )}
      <div class="history-files">
        <button
          disabled={conversations.value.length === 0}
          onClick={() => download("conversations.json", exported(conversations.value))}
        >
          <Icon name="down" /> Export
        </button>
        <label class="button">
          <Icon name="up" /> Import
          <input
            type="file"
            class="visually-hidden"
            accept="application/json,.json"
            onChange={(event) => {
              const input = event.currentTarget;
              void open(input.files?.[0]).then(() => (input.value = ""));
            }}
          />
        </label>
      </div>
    </nav>
  );
}

function Item({ conversation, onDone }: { conversation: Conversation; onDone: () => void }) {
  const title = useSignal<string | null>(null);
  const { id } = conversation;
  const isCurrent = current.value.id === id;
  if (title.value !== null) {
    const done = () => {
      rename(conversation, title.value ?? "");
      title.value = null;
    };
    return (
      <li>
        <input
          aria-label="Name of the conversation"
          value={title.value}
          onInput={(event) => (title.value = event.currentTarget.value)}
          onBlur={done}
          onKeyDown={(event) => {
            if (event.key === "Enter") done();
            if (event.key === "Escape") title.value = null;
          }}
        />
      </li>
    );
  }
  return (
    <li class={isCurrent ? "current" : undefined}>
      <a href={href("chat", id)} aria-current={isCurrent ? "page" : undefined} onClick={onDone}>
        {conversation.title || "New chat"}
      </a>
      <button class="icon" title="Rename" onClick={() => (title.value = conversation.title)}>
        <Icon name="edit" label={`Rename ${conversation.title}`} />
      </button>
      <button class="icon" title="Delete" onClick={() => drop(id)}>
        <Icon name="bin" label={`Delete ${conversation.title}`} />
      </button>
    </li>
  );
}
