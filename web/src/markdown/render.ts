// Text of a model as elements. Whatever it says, it is text: it is parsed as Markdown, everything
// but a short list of elements and attributes is thrown away, and nothing it names is loaded.
import DOMPurify from "dompurify";
import { Marked, type Tokens } from "marked";
import { escapeHtml, highlight } from "./highlight";
import { math } from "./math";

const marked = new Marked({
  gfm: true,
  breaks: false,
  renderer: {
    code({ text, lang }: Tokens.Code): string {
      const name = (lang ?? "").split(/\s/)[0] ?? "";
      const kind = name === "" ? "" : ` class="language-${escapeHtml(name)}"`;
      return `<pre><code${kind}>${highlight(text, name)}</code></pre>`;
    },
    // Raw HTML of an answer is shown as it was written.
    html({ text }: Tokens.HTML | Tokens.Tag): string {
      return escapeHtml(text);
    },
    // A picture would be a request to wherever the answer says: its link is there instead.
    image({ href, text }: Tokens.Image): string {
      return `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`;
    },
  },
});

marked.use({
  extensions: [
    { ...math, renderer: ({ text }) => `<span class="math">${escapeHtml(String(text))}</span>` },
  ],
});

const ALLOWED_TAGS = [
  ...["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr"],
  ...["input", "li", "ol", "p", "pre", "span", "strong", "sub", "sup"],
  ...["table", "tbody", "td", "th", "thead", "tr", "ul"],
];
const ALLOWED_ATTR = ["align", "checked", "class", "disabled", "href", "start"];

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  // Only the boxes of task lists are left, and those cannot be used.
  if (node.nodeName === "INPUT") {
    node.setAttribute("type", "checkbox");
    node.setAttribute("disabled", "");
    node.setAttribute("aria-label", "task");
  }
});

/** The elements of a text. */
export function render(text: string): DocumentFragment {
  const html = marked.parse(text, { async: false });
  return purify.sanitize(html, {
    ALLOWED_TAGS,
    ALLOWED_ATTR,
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ALLOW_DATA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}
