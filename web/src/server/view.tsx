// The server: how fast, how busy, how full; adapters; the key.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { getJson } from "../api/client";
import { connection, returns } from "../api/connection";
import { key, keyDialog } from "../api/key";
import { model } from "../api/models";
import { by, label, type Metrics, quantiles, total } from "../api/prometheus";
import { Chart, short } from "../ui/chart";
import { Icon } from "../ui/icon";
import { Adapters } from "./adapters";
import { Experts } from "./experts";
import { looks, metrics, metricsError, rates, watchServer } from "./history";
import { strategyName } from "../ui/names";

export function ServerView() {
  useEffect(watchServer, []);
  const read = metrics.value;
  return (
    <div class="server-view">
      <header class="view-head">
        <h1>Server</h1>
        <Version />
        <button onClick={() => (keyDialog.value = "asked")}>
          <Icon name="key" /> {key.value === "" ? "Set a key" : "Change the key"}
        </button>
      </header>
      {metricsError.value && (
        <p class="error" role="alert">
          {metricsError.value}
        </p>
      )}
      {read && (
        <>
          <Tiles read={read} />
          <div class="cards">
            <Charts />
            <Latency read={read} />
            <Speculation read={read} />
            <Searches read={read} />
            <Experts read={read} />
            <Adapters />
          </div>
        </>
      )}
      <p class="colophon hint">
        <a href="/docs/">API documentation</a> ·{" "}
        <a href="/assets/licences.txt">Licences of this page's libraries</a>
      </p>
    </div>
  );
}

const STATES = {
  ok: "ready",
  lost: "not reached",
  loading: "the model is loading",
  draining: "shutting down",
  failed: "failed",
};

function Version() {
  const version = useSignal("");
  const { value: back } = returns;
  useEffect(() => {
    getJson<{ version: string }>("/version", { quiet: true })
      .then((body) => (version.value = body.version))
      .catch(() => {});
  }, [back]);
  return (
    <span class="hint">
      {version.value && `Ponder ${version.value}, `}
      {model.value?.id} · {STATES[connection.value]}
    </span>
  );
}

function Tiles({ read }: { read: Metrics }) {
  const speed = rates((look) => look.generated).at(-1) ?? null;
  const look = looks.value.at(-1)!;
  const blocks = Number(label(read, "cache_config_info", "num_gpu_blocks") ?? 0);
  const used = Math.round(look.cache * blocks);
  const queries = total(read, "prefix_cache_queries_total");
  const hits = total(read, "prefix_cache_hits_total");
  const tiles: [string, string, string][] = [
    ["tokens a second", speed === null ? "–" : short(speed), `${short(look.generated)} in all`],
    ["running", String(look.running), look.branches > 0 ? `${look.branches} branches` : ""],
    ["waiting", String(look.waiting), ""],
    ["KV cache", percent(look.cache), blocks > 0 ? `${used} of ${blocks} blocks` : ""],
    ["prefix hits", queries > 0 ? percent(hits / queries) : "–", `${short(hits)} tokens`],
    ["preemptions", short(total(read, "num_preemptions_total")), ""],
  ];
  return (
    <dl class="tiles">
      {tiles.map(([name, figure, more]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>
            {figure} <small>{more}</small>
          </dd>
        </div>
      ))}
    </dl>
  );
}

function percent(share: number): string {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

function Charts() {
  const at = looks.value.map((look) => look.at);
  const running = looks.value.map((look) => look.running);
  const waiting = looks.value.map((look) => look.waiting);
  return (
    <>
      <section class="card">
        <h2>Tokens a second</h2>
        <p class="keys">
          <span class="key-a">generated</span> <span class="key-b">read</span>
        </p>
        <Chart
          lines={[
            { label: "generated", colour: "--accent" },
            { label: "read", colour: "--series-b" },
          ]}
          data={[at, rates((look) => look.generated), rates((look) => look.prompted)]}
          height={160}
          isTime
          top={10}
          label="Tokens generated and read in a second, over time"
        />
      </section>
      <section class="card">
        <h2>Requests and cache</h2>
        <p class="keys">
          <span class="key-a">running</span> <span class="key-b">waiting</span>{" "}
          <span class="key-c">cache, %</span>
        </p>
        <Chart
          lines={[
            { label: "running", colour: "--accent", kind: "steps" },
            { label: "waiting", colour: "--series-b", kind: "steps" },
            { label: "cache", colour: "--series-c" },
          ]}
          data={[at, running, waiting, looks.value.map((look) => 100 * look.cache)]}
          height={160}
          isTime
          top={4}
          label="Running and waiting requests and the cache's use in percent, over time"
        />
      </section>
    </>
  );
}

const MEASURES = [
  ["time_to_first_token_seconds", "first token"],
  ["inter_token_latency_seconds", "between tokens"],
  ["e2e_request_latency_seconds", "whole request"],
] as const;

function Latency({ read }: { read: Metrics }) {
  const time = (seconds: number | null) => {
    if (seconds === null) return "–";
    return seconds < 1 ? `${(seconds * 1000).toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
  };
  return (
    <section class="card">
      <h2>Latency since the start</h2>
      <table class="list">
        <thead>
          <tr>
            <th scope="col">
              <span class="visually-hidden">measure</span>
            </th>
            {["p50", "p90", "p99"].map((name) => (
              <th scope="col" class="number" key={name}>
                {name}
              </th>
            ))}
            <th scope="col" class="number">
              samples
            </th>
          </tr>
        </thead>
        <tbody>
          {MEASURES.map(([name, text]) => (
            <tr key={name}>
              <th scope="row">{text}</th>
              {quantiles(read, name, [0.5, 0.9, 0.99]).map((value, index) => (
                <td class="number" key={index}>
                  {time(value)}
                </td>
              ))}
              <td class="number">{short(total(read, `${name}_count`))}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function Speculation({ read }: { read: Metrics }) {
  const drafted = by(read, "spec_decode_num_draft_tokens_total", "drafter");
  const accepted = by(read, "spec_decode_num_accepted_tokens_total", "drafter");
  const rows = [...drafted].filter(([, count]) => count > 0);
  return (
    <section class="card">
      <h2>Speculation</h2>
      {rows.length === 0 ? (
        <p class="hint">Nothing was drafted yet.</p>
      ) : (
        <ul class="bars">
          {rows.map(([drafter, count]) => {
            const share = (accepted.get(drafter) ?? 0) / count;
            return (
              <li key={drafter}>
                <span>{drafter}</span>
                <meter min={0} max={1} value={share} aria-label={`${drafter}: accepted`} />
                <span>
                  {percent(share)} of {short(count)}
                </span>
              </li>
            );
          })}
        </ul>
      )}
    </section>
  );
}

function Searches({ read }: { read: Metrics }) {
  const searches = by(read, "searches_total", "strategy");
  const kept = by(read, "search_tokens_kept_total", "strategy");
  const discarded = by(read, "search_tokens_discarded_total", "strategy");
  if (searches.size === 0) return null;
  return (
    <section class="card">
      <h2>Searches</h2>
      <table class="list">
        <thead>
          <tr>
            <th scope="col">strategy</th>
            <th scope="col" class="number">
              searches
            </th>
            <th scope="col" class="number">
              tokens kept
            </th>
            <th scope="col" class="number">
              discarded
            </th>
          </tr>
        </thead>
        <tbody>
          {[...searches].map(([name, count]) => (
            <tr key={name}>
              <th scope="row">{strategyName(name)}</th>
              <td class="number">{count}</td>
              <td class="number">{short(kept.get(name) ?? 0)}</td>
              <td class="number">{short(discarded.get(name) ?? 0)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
