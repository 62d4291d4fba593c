// The frame around the views.
import { useEffect } from "preact/hooks";
import { look, returns } from "./api/connection";
import { key } from "./api/key";
import { chosenModel, loadModels, model, models, modelsError } from "./api/models";
import { ChatView } from "./chat/view";
import { href, route, type View } from "./router";
import { SearchView } from "./search/view";
import { ServerView } from "./server/view";
import { isDark, nextTheme } from "./theme";
import { TraceDetail } from "./traces/detail";
import { TracesList } from "./traces/list";
import { Select } from "./ui/fields";
import { Icon, type IconName } from "./ui/icon";
import { KeyDialog } from "./ui/key-dialog";
import { Notice } from "./ui/notice";

const VIEWS: [View, string, IconName][] = [
  ["chat", "Chat", "chat"],
  ["search", "Search", "tree"],
  ["traces", "Traces", "list"],
  ["server", "Server", "gauge"],
];

export function App() {
  const { view, argument } = route.value;
  const { value: back } = returns;
  const { value: shownKey } = key;
  useEffect(() => void loadModels(), [back, shownKey]);
  useEffect(() => {
    const name = VIEWS.find(([it]) => it === view)?.[1] ?? "Chat";
    document.title = `${name} · Ponder`;
  }, [view]);
  return (
    <>
      <a class="skip" href={href(view, argument)} onClick={skip}>
        Skip to the content
      </a>
      <header class="bar">
        <a class="brand" href={href("chat")}>
          <img src="/assets/icon.svg" alt="" width={26} height={26} />
          <span>Ponder</span>
        </a>
        <nav aria-label="Views">
          {VIEWS.map(([it, name, icon]) => (
            <a key={it} href={href(it)} aria-current={it === view ? "page" : undefined}>
              <Icon name={icon} />
              <span>{name}</span>
            </a>
          ))}
        </nav>
        <div class="bar-end">
          <ModelChoice />
          <button
            class="icon"
            title={isDark.value ? "Light" : "Dark"}
            onClick={nextTheme}
          >
            <Icon
              name={isDark.value ? "sun" : "moon"}
              label={isDark.value ? "Use light colours" : "Use dark colours"}
            />
          </button>
        </div>
      </header>
      <Notice />
      <main id="content" tabIndex={-1}>
        {view === "chat" && <ChatView />}
        {view === "search" && <SearchView />}
        {view === "traces" && (argument === "" ? <TracesList /> : <TraceDetail id={argument} />)}
        {view === "server" && <ServerView />}
      </main>
      <KeyDialog />
    </>
  );
}

function skip(event: Event): void {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

function ModelChoice() {
  if (modelsError.value) {
    return (
      <button class="quiet" title={modelsError.value} onClick={() => void retry()}>
        no models
      </button>
    );
  }
  return (
    <Select
      label="Model"
      isBare
      value={model.value?.id ?? ""}
      options={models.value.map((it) => [it.id, it.id] as const)}
      onChange={(name) => (chosenModel.value = name)}
    />
  );
}

async function retry(): Promise<void> {
  await look();
  await loadModels();
}
