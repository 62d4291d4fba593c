// uPlot as a component: it is made anew when what it shows changes in kind, and fed otherwise.
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { isDark } from "../theme";

export interface Line {
  label: string;
  /** A variable of the style sheet. */
  colour: string;
  kind?: "line" | "steps" | "points";
}

interface ChartProps {
  lines: Line[];
  /** x, then one list a line. */
  data: (number | null)[][];
  height: number;
  /** What it shows, for those who do not see it. */
  label: string;
  isTime?: boolean;
  format?: (value: number) => string;
  /** Values up to here are always in sight. */
  top?: number;
}

export function Chart(props: ChartProps) {
  const frame = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const dark = isDark.value;
  const kind = props.lines.map((line) => line.label + line.colour).join();

  useLayoutEffect(() => {
    const element = frame.current!;
    const width = Math.max(element.clientWidth, 80);
    const { current } = latest;
    const made = new uPlot(options(current, element, width), aligned(current), element);
    plot.current = made;
    const watch = new ResizeObserver(() => {
      const width = element.clientWidth;
      if (width > 0) made.setSize({ width, height: latest.current.height });
    });
    watch.observe(element);
    return () => {
      watch.disconnect();
      made.destroy();
    };
  }, [dark, kind]);

  useEffect(() => plot.current?.setData(aligned(props)));
  return <div class="chart" ref={frame} role="img" aria-label={props.label} />;
}

function aligned({ data }: ChartProps): uPlot.AlignedData {
  return data as unknown as uPlot.AlignedData;
}

function options(props: ChartProps, element: HTMLElement, width: number): uPlot.Options {
  const style = getComputedStyle(element);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const { format = short } = props;
  const axis = {
    stroke: colour("--muted"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: props.height,
    padding: [8, 20, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    scales: { x: { time: props.isTime ?? false }, y: { range: range(props.top) } },
    axes: [
      { ...axis, space: 70, size: 26, ...(props.isTime ? { values: clock } : {}) },
      { ...axis, size: 46, space: 26, values: (_, ticks) => ticks.map(format) },
    ],
    series: [{}, ...props.lines.map((line) => series(line, colour(line.colour)))],
  };
}

/** Times of the day: days do not fit, and the page looks back minutes. */
function clock(_: uPlot, seconds: number[]): string[] {
  return seconds.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB"));
}

function range(top: number | undefined): uPlot.Range.Function {
  return (_, low, high) => {
    if (low === null || high === null) return [0, top ?? 1];
    if (top !== undefined) return [0, Math.max(high * 1.1, top)];
    const pad = Math.max((high - low) * 0.12, 0.01);
    return [low - pad, high + pad];
  };
}

function series(line: Line, stroke: string): uPlot.Series {
  const { label, kind = "line" } = line;
  if (kind === "points") {
    return { label, stroke, paths: () => null, points: { show: true, size: 4, fill: stroke } };
  }
  const base: uPlot.Series = { label, stroke, width: 2, points: { show: false } };
  if (kind === "steps") base.paths = uPlot.paths.stepped!({ align: 1 });
  return base;
}

/** A number of few characters. */
export function short(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (size >= 1e4) return `${Math.round(value / 1e3)}k`;
  if (size >= 1e3) return `${(value / 1e3).toFixed(1)}k`;
  if (size >= 10 || Number.isInteger(value)) return String(Math.round(value));
  return value.toFixed(2);
}
