//! The document as a page, with no script and nothing from another host. Programs that send
//! requests from a form (Swagger UI, Bruno) read `/openapi.json`.

use std::cmp::Reverse;

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::{MethodRouter, get};
use serde_json::{Map, Value};

const STYLE: &str = include_str!("page.css");
/// No script runs and nothing is loaded but the page's own style.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";
/// Limits that say no more than the width of an integer.
const WIDTHS: [u64; 4] = [i32::MAX as u64, u32::MAX as u64, i64::MAX as u64, u64::MAX];

/// The routes of the document and of its page.
pub(in crate::api) fn routes<S: Clone + Send + Sync + 'static>(document: &Value) -> Router<S> {
    let html = "text/html; charset=utf-8";
    let page = Bytes::from(page(document));
    Router::new()
        .route(
            "/openapi.json",
            file("application/json", Bytes::from(document.to_string())),
        )
        .route("/docs", file(html, page.clone()))
        .route("/docs/", file(html, page))
        .route(
            "/docs/style.css",
            file(
                "text/css; charset=utf-8",
                Bytes::from_static(STYLE.as_bytes()),
            ),
        )
}

fn file<S: Clone + Send + Sync + 'static>(kind: &'static str, body: Bytes) -> MethodRouter<S> {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    get(move || async move { (headers, body) })
}

/// A route of the document with one of its methods.
struct Operation<'d> {
    method: &'d str,
    path: &'d str,
    body: &'d Value,
}

impl Operation<'_> {
    fn tag(&self) -> &str {
        self.body["tags"][0].as_str().unwrap_or("other")
    }

    fn anchor(&self) -> String {
        let path = self.path.replace(['{', '}'], "").replace('/', "-");
        format!("{}{path}", self.method)
    }
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let methods = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(move |(method, body)| Operation { method, path, body })
    });
    methods.collect()
}

fn page(document: &Value) -> String {
    let operations = operations(document);
    let mut tags: Vec<&str> = Vec::new();
    for operation in &operations {
        if !tags.contains(&operation.tag()) {
            tags.push(operation.tag());
        }
    }
    // The largest parts are what most look for.
    let num_routes = |tag: &str| operations.iter().filter(|it| it.tag() == tag).count();
    tags.sort_by_key(|tag| Reverse(num_routes(tag)));
    let (mut contents, mut routes) = (String::new(), String::new());
    for tag in tags {
        let own = || {
            operations
                .iter()
                .filter(move |operation| operation.tag() == tag)
        };
        let links: String = own().map(link_of).collect();
        contents += &format!("<h2>{}</h2><ul>{links}</ul>", escape(tag));
        let own: String = own().map(|it| operation(it, document)).collect();
        routes += &format!("<h2>{}</h2>{own}", escape(tag));
    }
    let schemas = document["components"]["schemas"].as_object();
    let schemas: String = schemas.into_iter().flatten().map(schema_section).collect();
    let info = &document["info"];
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title} API</title>\
         <link rel=\"stylesheet\" href=\"/docs/style.css\"></head><body>\
         <header><h1>{title} {version}</h1><p>{about}. The same as \
         <a href=\"/openapi.json\">OpenAPI document</a>, for programs.</p></header>\
         <nav aria-label=\"Routes\">{contents}<h2><a href=\"#schemas\">schemas</a></h2></nav>\
         <main>{routes}<h2 id=\"schemas\">schemas</h2>{schemas}</main></body></html>\n",
        title = escape(text(info, "title")),
        version = escape(text(info, "version")),
        about = escape(text(info, "description")),
    )
}

fn link_of(operation: &Operation<'_>) -> String {
    format!(
        "<li><a href=\"#{}\"><b>{}</b> {}</a></li>",
        escape(&operation.anchor()),
        operation.method,
        escape(operation.path)
    )
}

fn operation(operation: &Operation<'_>, document: &Value) -> String {
    let body = operation.body;
    let mut html = format!(
        "<section id=\"{}\"><h3><b>{}</b> <code>{}</code></h3><p>{}</p>",
        escape(&operation.anchor()),
        operation.method,
        escape(operation.path),
        prose(text(body, "summary"))
    );
    if !text(body, "description").is_empty() {
        html += &format!("<p>{}</p>", prose(text(body, "description")));
    }
    for (kind, content) in body["requestBody"]["content"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let schema = kind_of(&content["schema"]);
        html += &format!("<p>Body: {schema}, as <code>{}</code></p>", escape(kind));
    }
    let parameters = body["parameters"].as_array().map(Vec::as_slice);
    if let Some(parameters @ [_, ..]) = parameters {
        let rows = parameters.iter().map(|parameter| {
            let place = format!(" <small>in the {}</small>", text(parameter, "in"));
            let is_required = parameter["required"] == true;
            let about = text(parameter, "description");
            row(
                text(parameter, "name"),
                &place,
                is_required,
                &parameter["schema"],
                about,
            )
        });
        html += &table(&rows.collect::<String>());
    }
    let responses = body["responses"].as_object().into_iter().flatten();
    let responses: String = responses.map(|it| response(it, document)).collect();
    html += &format!("<details><summary>Answers</summary><dl>{responses}</dl></details></section>");
    html
}

fn response((status, response): (&String, &Value), document: &Value) -> String {
    let named = response["$ref"].as_str().and_then(|path| {
        let pointer = path.strip_prefix('#')?;
        document.pointer(pointer)
    });
    let response = named.unwrap_or(response);
    let contents = response["content"].as_object().into_iter().flatten();
    let schemas: String = contents
        .map(|(kind, content)| match &content["schema"] {
            Value::Null => format!(" (<code>{}</code>)", escape(kind)),
            schema => format!(" ({})", kind_of(schema)),
        })
        .collect();
    let about = prose(text(response, "description"));
    format!("<dt>{}</dt><dd>{about}{schemas}</dd>", escape(status))
}

fn schema_section((name, schema): (&String, &Value)) -> String {
    let name = escape(name);
    let mut html = format!("<section id=\"schema-{name}\"><h3>{name}</h3>");
    if !text(schema, "description").is_empty() {
        html += &format!("<p>{}</p>", prose(text(schema, "description")));
    }
    match schema["properties"].as_object() {
        Some(fields) => html += &table(&rows(fields, &schema["required"])),
        None => html += &format!("<p>{}</p>", kind_of(schema)),
    }
    html + "</section>"
}

fn rows(fields: &Map<String, Value>, required: &Value) -> String {
    let is_required = |name: &str| {
        let mut names = required.as_array().into_iter().flatten();
        names.any(|required| required == name)
    };
    let of =
        |(name, schema): (&String, &Value)| row(name, "", is_required(name), schema, about(schema));
    fields.iter().map(of).collect()
}

/// What a schema says of itself, or the first of its choices that says something.
fn about(schema: &Value) -> &str {
    let choices = choices(schema)
        .iter()
        .map(|choice| text(choice, "description"));
    let mut said = std::iter::once(text(schema, "description")).chain(choices);
    said.find(|text| !text.is_empty()).unwrap_or_default()
}

fn row(name: &str, place: &str, is_required: bool, schema: &Value, about: &str) -> String {
    let required = if is_required {
        " <em>required</em>"
    } else {
        ""
    };
    format!(
        "<tr><td><code>{}</code>{place}{required}</td><td>{}{}</td><td>{}</td></tr>",
        escape(name),
        kind_of(schema),
        limits(schema),
        prose(about)
    )
}

fn table(rows: &str) -> String {
    format!(
        "<div class=\"table\"><table><thead><tr><th scope=\"col\">Name</th>\
         <th scope=\"col\">Type</th><th scope=\"col\">Meaning</th></tr></thead>\
         <tbody>{rows}</tbody></table></div>"
    )
}

fn choices(schema: &Value) -> &[Value] {
    let one = schema["oneOf"].as_array();
    let any = one.or_else(|| schema["anyOf"].as_array());
    any.map_or(&[], Vec::as_slice)
}

/// A schema in a few words; one with a name as a link.
fn kind_of(schema: &Value) -> String {
    if let Some(path) = schema["$ref"].as_str() {
        let name = escape(path.rsplit('/').next().unwrap_or(path));
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    if let Some(values) = schema["enum"].as_array() {
        let values = values.iter().map(|value| match value {
            Value::String(text) => format!("<code>{}</code>", escape(text)),
            other => format!("<code>{}</code>", escape(&other.to_string())),
        });
        return values.collect::<Vec<_>>().join(" | ");
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name.as_str()],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if names.is_empty() {
        let kinds: Vec<String> = choices(schema).iter().map(kind_of).collect();
        return match kinds.is_empty() {
            true => "any".to_owned(),
            false => kinds.join(" or "),
        };
    }
    let kinds = names.iter().map(|name| match (*name, &schema["items"]) {
        ("array", items @ Value::Object(_)) => format!("array of {}", kind_of(items)),
        (name, _) => escape(name),
    });
    kinds.collect::<Vec<_>>().join(" or ")
}

/// The limits of a value that say more than its type.
fn limits(schema: &Value) -> String {
    let is_width = |value: &&Value| value.as_u64().is_some_and(|value| WIDTHS.contains(&value));
    let found = [
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
        ("minLength", "length ≥"),
        ("maxLength", "length ≤"),
        ("minItems", "items ≥"),
        ("maxItems", "items ≤"),
        ("default", "default"),
    ]
    .into_iter()
    .filter_map(|(key, sign)| {
        let value = schema.get(key).filter(|value| !is_width(value))?;
        Some(escape(&format!("{sign} {value}")))
    });
    let found: Vec<String> = found.collect();
    match found.is_empty() {
        true => String::new(),
        false => format!("<br><small>{}</small>", found.join(", ")),
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// Text with code between backticks.
fn prose(text: &str) -> String {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        html += &match at % 2 {
            0 => escape(part),
            _ => format!("<code>{}</code>", escape(part)),
        };
    }
    html
}

fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            other => html.push(other),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn routes_and_schemas_are_told_with_their_types() {
        let document = json!({
            "info": {"title": "T <1>", "version": "0", "description": "D"},
            "paths": {"/v1/x/{id}": {"post": {
                "tags": ["t"], "summary": "Says `a` & more.",
                "parameters": [{"name": "id", "in": "path", "required": true,
                    "schema": {"type": "string"}}],
                "requestBody": {"content": {"application/json":
                    {"schema": {"$ref": "#/components/schemas/X"}}}},
                "responses": {"200": {"description": "Fine"},
                    "400": {"$ref": "#/components/responses/Bad"}}
            }}},
            "components": {
                "responses": {"Bad": {"description": "Wrong", "content": {"application/json":
                    {"schema": {"$ref": "#/components/schemas/X"}}}}},
                "schemas": {"X": {"type": "object", "required": ["n"], "properties": {
                    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": u64::MAX},
                    "s": {"oneOf": [{"type": "array", "items": {"enum": ["<a>", 2]}},
                        {"$ref": "#/components/schemas/X", "description": "About s"}]}
                }}}
            }
        });
        let html = page(&document);
        for expected in [
            "<title>T &lt;1&gt; API</title>",
            "<a href=\"#post-v1-x-id\"><b>post</b> /v1/x/{id}</a>",
            "<section id=\"post-v1-x-id\">",
            "Says <code>a</code> &amp; more.",
            "<code>id</code> <small>in the path</small> <em>required</em></td><td>string</td>",
            "Body: <a href=\"#schema-X\">X</a>, as <code>application/json</code>",
            "<dt>200</dt><dd>Fine</dd>",
            "<dt>400</dt><dd>Wrong (<a href=\"#schema-X\">X</a>)</dd>",
            "<code>n</code> <em>required</em></td><td>integer or null<br><small>≥ 1</small></td>",
            "array of <code>&lt;a&gt;</code> | <code>2</code> or <a href=\"#schema-X\">X</a></td>\
             <td>About s</td>",
        ] {
            assert!(html.contains(expected), "{expected} is not in {html}");
        }
        assert!(!html.contains("<script") && !html.contains("style=\""));
    }
}
