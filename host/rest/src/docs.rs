//! What the API says of itself: the document that is generated from the handlers, completed with what all of them share,
//! and a page of it for people, which needs nothing but itself.

use std::fmt::Write as _;

use axum::response::Html;
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi as Document;

use crate::ProblemBody;

/// Where what is below stands in the document.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Tidemill", description = "The management API of a cluster. \
        Refusals are `application/problem+json`, whose `detail` names the thing and the mend: \
        400 a body that is not what it says to be, 401 no token or an unknown one, 403 a token whose role may not, \
        404 no such thing, 405 no such method, 408 an upload that does not arrive, 409 not possible as the job is now, \
        413 too large, 415 another type of body, 422 a body or a query that says something wrong, 429 too many operations, \
        503 not possible now. \
        Times are milliseconds since 1970, UTC. \
        Where the cluster has tokens, GET asks for the role `read`, POST for `submit`, DELETE for `admin`."),
    components(schemas(ProblemBody)),
    tags(
        (name = "cluster", description = "The cluster as a whole"),
        (name = "artifacts", description = "Components that were uploaded"),
        (name = "jobs", description = "Jobs, and what is wanted of them"),
        (name = "operations", description = "What takes long, and was asked for"),
        (name = "health", description = "Whether it is well"),
        (name = "metrics", description = "Figures"),
    )
)]
pub struct Description;

/// What asks for no token.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// The document with what all operations share: tokens, and how they refuse.
pub fn complete(document: Document) -> Value {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let problem = json!({
        "description": "It was refused",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
    });
    let scheme = json!({"type": "http", "scheme": "bearer", "description": "If the cluster has tokens"});
    if let Some(components) = document.get_mut("components").and_then(Value::as_object_mut) {
        components.insert("securitySchemes".to_owned(), json!({"token": scheme}));
    }
    for (path, item) in document.get_mut("paths").and_then(Value::as_object_mut).into_iter().flatten() {
        for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
            if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
                responses.insert("default".to_owned(), problem.clone());
                for response in responses.values_mut().filter_map(Value::as_object_mut) {
                    response.entry("description").or_insert_with(|| Value::from("What was asked for"));
                }
            }
            if let (false, Some(operation)) = (OPEN.contains(&path.as_str()), operation.as_object_mut()) {
                // With a token, or with none.
                operation.insert("security".to_owned(), json!([{"token": []}, {}]));
            }
        }
    }
    document
}

/// The document as a page.
pub fn page(document: &Value) -> Html<String> {
    let mut html = String::new();
    // Writing to a String does not fail.
    _ = write_page(&mut html, document);
    Html(html)
}

fn write_page(html: &mut String, document: &Value) -> std::fmt::Result {
    let text = |at: &str| escape(document.pointer(at).and_then(Value::as_str).unwrap_or_default());
    let (title, version) = (text("/info/title"), text("/info/version"));
    write!(html, "<!doctype html><html lang=en><meta charset=utf-8><title>{title} API</title>")?;
    write!(html, "<meta name=viewport content='width=device-width'><style>{STYLE}</style>")?;
    write!(html, "<h1>{title} <small>{version}</small></h1><p>{}</p>", code(&text("/info/description")))?;
    write!(html, "<p>For programs: <a href='/api/v1/openapi.json'>/api/v1/openapi.json</a></p>")?;
    for tag in array(document.get("tags")) {
        let name = tag.get("name").and_then(Value::as_str).unwrap_or_default();
        write!(html, "<h2>{}</h2><p>{}</p>", escape(name), escape(string(tag, "description")))?;
        for (path, item) in object(document.get("paths")) {
            for (method, operation) in object(Some(item)) {
                if array(operation.get("tags")).any(|of| of == name) {
                    write_operation(html, method, path, operation)?;
                }
            }
        }
    }
    html.push_str("<h2>Shapes</h2>");
    for (name, schema) in object(document.pointer("/components/schemas")) {
        write!(html, "<details id='{0}'><summary><b>{0}</b> {1}</summary>", escape(name), described(schema))?;
        write_schema(html, schema)?;
        html.push_str("</details>");
    }
    Ok(())
}

fn write_operation(html: &mut String, method: &str, path: &str, operation: &Value) -> std::fmt::Result {
    let summary = escape(string(operation, "summary"));
    write!(html, "<details><summary><span class={method}>{}</span> ", method.to_uppercase())?;
    write!(html, "<code>{}</code> {summary}</summary>", escape(path))?;
    let description = string(operation, "description");
    if !description.is_empty() {
        write!(html, "<p>{}</p>", code(&escape(description)))?;
    }
    html.push_str("<dl>");
    for parameter in array(operation.get("parameters")) {
        write!(html, "<dt><code>{}</code><dd>{}", escape(string(parameter, "name")), described(parameter))?;
    }
    if let Some(body) = operation.get("requestBody") {
        write!(html, "<dt>Body<dd>{}", contents(body))?;
    }
    for (status, response) in object(operation.get("responses")) {
        let status = if status == "default" { "else" } else { status };
        write!(html, "<dt>{}<dd>{}{}", escape(status), contents(response), after(response))?;
    }
    html.push_str("</dl></details>");
    Ok(())
}

/// The types of a body, each with its shape.
fn contents(of: &Value) -> String {
    let shapes = object(of.get("content")).map(|(kind, content)| {
        let schema = content.get("schema").map(shape).unwrap_or_default();
        format!("{schema} as <code>{}</code>", escape(kind))
    });
    shapes.collect::<Vec<_>>().join(", ")
}

fn write_schema(html: &mut String, schema: &Value) -> std::fmt::Result {
    html.push_str("<dl>");
    let required: Vec<&Value> = array(schema.get("required")).collect();
    for (name, property) in object(schema.get("properties")) {
        let optional = if required.iter().any(|of| *of == name) { "" } else { " <i>may be missing</i>" };
        write!(html, "<dt><code>{}</code>{optional}<dd>{}{}", escape(name), shape(property), after(property))?;
    }
    for one in array(schema.get("oneOf")) {
        write!(html, "<dt>{}<dd>{}", shape(one), described(one))?;
    }
    for value in array(schema.get("enum")) {
        write!(html, "<dt><code>{}</code><dd>", escape(&value.to_string()))?;
    }
    html.push_str("</dl>");
    Ok(())
}

/// A schema in a few words.
fn shape(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
        return format!("<a href='#{0}'>{0}</a>", escape(name));
    }
    let any = array(schema.get("oneOf")).chain(array(schema.get("anyOf"))).chain(array(schema.get("allOf")));
    let any: Vec<String> = any.map(shape).collect();
    if !any.is_empty() {
        return any.join(" or ");
    }
    if let Some(items) = schema.get("items") {
        return format!("list of {}", shape(items));
    }
    let values: Vec<String> =
        array(schema.get("enum")).map(|value| format!("<code>{}</code>", escape(&value.to_string()))).collect();
    if !values.is_empty() {
        return values.join(" or ");
    }
    let inside: Vec<String> = object(schema.get("properties"))
        .map(|(name, of)| format!("<code>{{\"{}\": </code>{}<code>}}</code>", escape(name), shape(of)))
        .collect();
    if !inside.is_empty() {
        return inside.join(", ");
    }
    match schema.get("type") {
        Some(Value::String(kind)) => escape(kind),
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).map(escape).collect::<Vec<_>>().join(" or ")
        }
        _ => "anything".to_owned(),
    }
}

fn described(of: &Value) -> String {
    code(&escape(string(of, "description")))
}

/// What stands behind a shape.
fn after(of: &Value) -> String {
    let text = described(of);
    if text.is_empty() { text } else { format!(" &middot; {text}") }
}

fn string<'a>(of: &'a Value, name: &str) -> &'a str {
    of.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn array(of: Option<&Value>) -> impl Iterator<Item = &Value> {
    of.and_then(Value::as_array).into_iter().flatten()
}

fn object(of: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    of.and_then(Value::as_object).into_iter().flatten()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// What stands between backticks is code.
fn code(escaped: &str) -> String {
    let pieces = escaped.split('`').enumerate();
    pieces.map(|(i, piece)| if i % 2 == 0 { piece.to_owned() } else { format!("<code>{piece}</code>") }).collect()
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
h1 small{font-weight:normal;opacity:.6}h2{margin-top:2em;border-bottom:1px solid #8884}\
code{font:14px ui-monospace,monospace;background:#8882;padding:.1em .3em;border-radius:3px}\
details{border:1px solid #8884;border-radius:5px;margin:.4em 0;padding:.3em .7em}summary{cursor:pointer}details:target{outline:2px solid #2a7ae2}\
summary span{display:inline-block;width:4.5em;font:bold 13px ui-monospace,monospace}\
.get{color:#2a7ae2}.post{color:#2e9e4f}.delete{color:#d0453e}\
dt{margin-top:.4em}dd{margin-left:2em}dl{margin:.5em 0}i{opacity:.6}";
