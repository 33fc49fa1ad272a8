//! The header `Link` (RFC 8288).

/// The target of the first link with `rel="next"`.
pub fn next(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (_, from_target) = rest.split_once('<')?;
        let (target, after) = from_target.split_once('>')?;
        let (parameters, others) = split_parameters(after);
        if parameters.iter().any(|parameter| is_next(parameter)) {
            return Some(target.trim());
        }
        rest = others;
    }
}

/// The parameters of a link, and what comes after the comma that ends it. Neither a comma nor a
/// semicolon within quotes ends anything.
fn split_parameters(text: &str) -> (Vec<&str>, &str) {
    let (mut parameters, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, symbol) in text.char_indices() {
        match symbol {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' | ',' if !quoted => {
                parameters.push(&text[start..at]);
                start = at + 1;
                if symbol == ',' {
                    return (parameters, &text[start..]);
                }
            }
            _ => {}
        }
    }
    parameters.push(&text[start..]);
    (parameters, "")
}

/// Whether a parameter is `rel` with `next` among its space-separated types.
fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let value = value.trim().trim_matches('"');
    let mut types = value.split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel") && types.any(|one| one.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::fuzz::with_faults;

    #[test]
    fn finds_the_next_page() {
        for (header, expected) in [
            (
                r#"<https://a/?page=2>; rel="next""#,
                Some("https://a/?page=2"),
            ),
            (
                r#"<https://a/?page=1>; rel="prev", <https://a/?page=3>; rel="next", <https://a/?page=9>; rel="last""#,
                Some("https://a/?page=3"),
            ),
            ("</b?x=1,2;3>; rel=next", Some("/b?x=1,2;3")),
            (
                r#"<a>; title="x, y; rel=\"next\" <z>"; rel="last", <b> ; REL="up Next""#,
                Some("b"),
            ),
            (r#"<a>; rel="prev""#, None),
            (r#"<a>; rel="nextish""#, None),
            (r#"<a>; title="next""#, None),
            ("<a", None),
            ("", None),
        ] {
            assert_eq!(next(header), expected, "{header}");
        }
    }

    const HEADER: &str =
        r#"<https://a/?page=1>; rel="prev", <https://a/?page=3>; title="x, \"y\""; rel="up next""#;

    /// Links to pages that aren't the next.
    fn others() -> impl Strategy<Value = String> {
        let link = r#"<[a-z,;/]{0,8}>(; ?(rel="prev"|rel=last|title="[a-z,;<> =]{0,8}")){0,3}"#;
        vec(link, 0..3).prop_map(|links| links.join(", "))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_header_has_a_next_page_or_none(
            header in prop_oneof![any::<String>(), "[<>;,=\"a-z \\\\é]{0,40}", with_faults(HEADER)],
        ) {
            if let Some(target) = next(&header) {
                prop_assert!(header.contains(target));
            }
        }

        #[test]
        fn the_next_page_is_found_among_others(
            before in others(),
            target in "[a-z/:?&=,;.]{1,20}",
            after in others(),
        ) {
            let header = format!(r#"{before}, <{target}>; rel="next", {after}"#);
            prop_assert_eq!(next(&header), Some(target.as_str()));
        }
    }
}
