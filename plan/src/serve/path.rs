//! Paths with parameters, as in `/models/sessions/{player_id}`.

/// A path of literal segments and parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Parameter(String),
}

impl Path {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let inner = text.strip_prefix('/').ok_or("it begins with `/`")?;
        let mut segments = Vec::new();
        for part in inner.split('/') {
            let name = part
                .strip_prefix('{')
                .and_then(|rest| rest.strip_suffix('}'));
            let segment = match name {
                Some(name) => Segment::Parameter(name.into()),
                None if matches!(part, "" | "." | "..") => {
                    return Err(format!("`{text}` has an empty segment, `.` or `..`"));
                }
                None if part.contains(['{', '}']) => {
                    return Err(format!("`{part}`: braces stand around a whole segment"));
                }
                None => Segment::Literal(part.into()),
            };
            if matches!(segment, Segment::Parameter(_)) && segments.contains(&segment) {
                return Err(format!(
                    "`{part}` is there twice; give each parameter a name of its own"
                ));
            }
            segments.push(segment);
        }
        Ok(Path(segments))
    }

    pub(crate) fn first(&self) -> &str {
        match self.0.first() {
            Some(Segment::Literal(text)) => text,
            _ => "",
        }
    }

    /// The names of its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// Whether both match the same paths.
    pub(crate) fn is_like(&self, other: &Path) -> bool {
        let like = |pair: (&Segment, &Segment)| match pair {
            (Segment::Literal(one), Segment::Literal(other)) => one == other,
            (Segment::Parameter(_), Segment::Parameter(_)) => true,
            _ => false,
        };
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(like)
    }

    /// The parameters' texts in the path of a request, as they are there (percent-encoded), if the
    /// path is this one.
    pub fn matches<'a>(&'a self, path: &'a str) -> Option<Vec<(&'a str, &'a str)>> {
        let mut texts = Vec::new();
        let mut parts = path.strip_prefix('/')?.split('/');
        for segment in &self.0 {
            match (segment, parts.next()?) {
                (Segment::Literal(text), part) if text == part => {}
                (Segment::Parameter(name), part) if !part.is_empty() => {
                    texts.push((name.as_str(), part));
                }
                _ => return None,
            }
        }
        parts.next().is_none().then_some(texts)
    }

    /// Of two paths that match a request the more literal one answers.
    pub fn precedence(&self) -> impl Ord + use<> {
        let is_parameter = |segment: &Segment| matches!(segment, Segment::Parameter(_));
        self.0.iter().map(is_parameter).collect::<Vec<_>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_segment_by_segment() {
        let path = Path::parse("/started/{country}/{hours}").unwrap();
        let found = path.matches("/started/IT/24");
        assert_eq!(found, Some(vec![("country", "IT"), ("hours", "24")]));
        for other in [
            "/started/IT",
            "/started/IT/24/",
            "/started//24",
            "/Started/IT/24",
            "",
        ] {
            assert_eq!(path.matches(other), None, "{other}");
        }
        let literal = Path::parse("/started/IT/{hours}").unwrap();
        assert!(literal.precedence() < path.precedence());
        assert!(path.is_like(&Path::parse("/started/{a}/{b}").unwrap()));
        assert!(!path.is_like(&literal));
    }

    #[test]
    fn says_what_is_wrong() {
        for text in ["a", "/a//b", "/", "/a/{x}y", "/{x}/{x}", "/../a"] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
    }
}
