//! The page around the charts: style, script, skeleton. It refers to nothing outside itself.

/// Light and dark, wide and narrow.
const STYLE: &str = include_str!("page.css");
/// Shows the value under the pointer or the arrow keys.
const SCRIPT: &str = include_str!("page.js");

/// Text as HTML, in elements and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// A section with its heading; `body` is HTML.
pub(super) fn section(id: &str, heading: &str, body: &str) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"h-{id}\"><h2 id=\"h-{id}\">{}</h2>\n{body}</section>\n",
        escape(heading)
    )
}

/// The whole page; `body` is HTML, with a link for each `(id, name)` at its top.
pub(super) fn page(title: &str, links: &[(&str, &str)], body: &str) -> String {
    let title = escape(title);
    let links: String = links.iter().map(|(id, name)| format!("<a href=\"#{id}\">{}</a>", escape(name))).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>\n<style>\n{STYLE}</style></head>\n\
         <body><main><h1>{title}</h1>\n<nav aria-label=\"Sections\">{links}</nav>\n{body}</main>\
         <div id=\"tip\" role=\"status\" hidden></div>\n<script>\n{SCRIPT}</script></body></html>\n"
    )
}
