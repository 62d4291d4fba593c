// The colours of the canvas. They are read from the style sheet, so that both themes have theirs.

/** Steps of the scale: nodes are drawn in one pass for each. */
export const NUM_SHADES = 24;

export interface Colours {
  shades: string[];
  unscored: string;
  edge: string;
  faint: string;
  ink: string;
  muted: string;
  surface: string;
  accent: string;
  right: string;
  wrong: string;
}

export function readColours(element: HTMLElement): Colours {
  const style = getComputedStyle(element);
  const of = (name: string) => style.getPropertyValue(name).trim() || "#888888";
  const stops = ["--value-0", "--value-1", "--value-2", "--value-3"].map((name) => rgb(of(name)));
  const shades = Array.from({ length: NUM_SHADES }, (_, index) =>
    mix(stops, index / (NUM_SHADES - 1)),
  );
  return {
    shades,
    unscored: of("--unscored"),
    edge: of("--edge"),
    faint: of("--edge-faint"),
    ink: of("--ink"),
    muted: of("--muted"),
    surface: of("--canvas"),
    accent: of("--accent"),
    right: of("--good"),
    wrong: of("--bad"),
  };
}

type Rgb = [number, number, number];

function rgb(hex: string): Rgb {
  const value = Number.parseInt(hex.replace("#", ""), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

function mix(stops: Rgb[], at: number): string {
  const place = at * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  const share = place - index;
  const [a, b] = [stops[index]!, stops[index + 1]!];
  const channel = (i: 0 | 1 | 2) => Math.round(a[i] + (b[i] - a[i]) * share);
  return `rgb(${channel(0)}, ${channel(1)}, ${channel(2)})`;
}

/** The shade of a value on a scale; values outside of it take its ends. */
export function shadeOf(value: number, low: number, high: number): number {
  const share = high > low ? (value - low) / (high - low) : 0.5;
  return Math.round(Math.min(Math.max(share, 0), 1) * (NUM_SHADES - 1));
}
