//! Rows become an answer: JSON, an HTML table or a plot, whichever was asked for.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use millstream_api::serve::{Endpoint, Format, Shape};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{html, plot, problem::Problem, value::Table};

/// What goes into an answer.
pub struct Answer<'a> {
    pub endpoint: &'a Endpoint,
    pub title: &'a str,
    pub table: &'a Table,
    /// Path and query of the page after this one.
    pub next: Option<Next>,
}

/// The page after this one.
pub struct Next {
    pub token: String,
    /// Path and query.
    pub link: String,
}

/// Finds the format: `?format=`, else the first of `Accept` that there is, else the endpoint's own,
/// which is also what a browser gets.
pub fn negotiate(
    endpoint: &Endpoint,
    asked: Option<&str>,
    headers: &HeaderMap,
) -> Result<Format, Problem> {
    if let Some(asked) = asked {
        return match asked {
            "json" => Ok(Format::Json),
            "html" => Ok(Format::Html),
            "svg" if endpoint.plot.is_some() => Ok(Format::Svg),
            "svg" => Err(Problem::parameter(
                "format",
                "is `svg`, and this endpoint has no plot",
            )),
            _ if endpoint.plot.is_some() => Err(Problem::parameter(
                "format",
                "may be one of json, html, svg",
            )),
            _ => Err(Problem::parameter("format", "may be one of json, html")),
        };
    }
    let accept = headers.get_all(header::ACCEPT).iter();
    let accept: Vec<(&str, f32)> = accept
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let accepted = parts.next()?;
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            let quality = quality.and_then(|text| text.parse().ok()).unwrap_or(1.0);
            (quality > 0.0).then_some((accepted, quality))
        })
        .collect();
    // Browsers name HTML first whatever they are after, and show JSON and plots as well.
    let takes_any = accept.iter().any(|(accepted, _)| *accepted == "*/*");
    let mut wanted: Vec<(f32, Format)> = accept
        .into_iter()
        .filter_map(|(accepted, quality)| {
            let format = match accepted {
                "application/json" => Format::Json,
                "text/html" if endpoint.format == Format::Svg => Format::Svg,
                "text/html" if takes_any => endpoint.format,
                "text/html" => Format::Html,
                "image/svg+xml" | "image/*" if endpoint.plot.is_some() => Format::Svg,
                "*/*" => endpoint.format,
                _ => return None,
            };
            Some((quality, format))
        })
        .collect();
    // A stable sort: of equals the first wins.
    wanted.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    Ok(wanted
        .first()
        .map_or(endpoint.format, |(_, format)| *format))
}

impl Answer<'_> {
    /// The response, or 304 where the one who asks has it already.
    pub fn response(&self, format: Format, request: &HeaderMap) -> Result<Response, Problem> {
        let (content_type, body) = match format {
            Format::Json => ("application/json", self.json()?),
            Format::Html => ("text/html; charset=utf-8", html::table(self)),
            Format::Svg => ("image/svg+xml", plot::svg(self.endpoint, self.table)?),
        };
        let digest = Sha256::digest(&body);
        let digits: String = digest[..12]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        // Weak, because the same answer may be sent compressed.
        let tag = format!("W/\"{digits}\"");
        let mut response = if is_known(request, &tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, content_type)], Body::from(body)).into_response()
        };
        let headers = response.headers_mut();
        let mut add = |name, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        add(header::ETAG, &tag);
        // May be kept, and is asked for again all the same: rows change at any time.
        add(header::CACHE_CONTROL, "private, no-cache");
        if let Some(next) = &self.next {
            add(header::LINK, &format!("<{}>; rel=\"next\"", next.link));
        }
        Ok(response)
    }

    fn json(&self) -> Result<String, Problem> {
        let body = match self.endpoint.shape {
            Shape::Array => serde_json::to_string(self.table),
            Shape::Object => serde_json::to_string(&Items {
                count: self.table.rows.len(),
                items: self.table,
                next: self.next.as_ref().map(|next| next.token.as_str()),
            }),
        };
        body.map_err(|error| Problem::internal("the rows can't be written as JSON", error))
    }
}

/// An answer that is an object.
#[derive(Serialize)]
struct Items<'a> {
    count: usize,
    items: &'a Table,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

/// Whether `If-None-Match` names this answer.
fn is_known(request: &HeaderMap, tag: &str) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let known = request.get_all(header::IF_NONE_MATCH).iter();
    let mut known = known
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    known.any(|known| known.trim() == "*" || plain(known) == plain(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(more: &str) -> Endpoint {
        let yaml = format!("{{name: e, path: /e, cql: SELECT a FROM t{more}}}");
        serde_saphyr::from_str(&yaml).unwrap()
    }

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_query_parameter_wins_then_accept_then_the_endpoint() {
        let plain = endpoint("");
        let page = endpoint(", format: html, plot: {label: a, value: b}");
        let plot = endpoint(", format: svg, plot: {label: a, value: b}");
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (endpoint, asked, accepts, expected) in [
            (&plain, None, "*/*", Format::Json),
            (&plain, None, browser, Format::Json),
            (&plain, Some("html"), browser, Format::Html),
            (&plain, None, "text/html", Format::Html),
            (
                &plain,
                None,
                "text/html, application/xml;q=0.9",
                Format::Html,
            ),
            (&page, None, browser, Format::Html),
            (&page, Some("json"), browser, Format::Json),
            (&plain, None, "image/svg+xml", Format::Json),
            (&page, None, "*/*", Format::Html),
            (&page, None, "application/json", Format::Json),
            (
                &page,
                None,
                "text/html;q=0.1, application/json;q=0.5",
                Format::Json,
            ),
            (&page, None, "image/svg+xml,image/*;q=0.8", Format::Svg),
            (&page, Some("svg"), "*/*", Format::Svg),
            (&plot, None, browser, Format::Svg),
            (&plot, Some("html"), browser, Format::Html),
            (&plot, None, "application/json", Format::Json),
        ] {
            let found = negotiate(endpoint, asked, &accept(accepts)).unwrap();
            assert_eq!(found, expected, "{asked:?} {accepts}");
        }
        assert!(negotiate(&plain, Some("svg"), &HeaderMap::new()).is_err());
        assert!(negotiate(&page, Some("xml"), &HeaderMap::new()).is_err());
    }
}
