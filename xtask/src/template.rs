//! Committed configuration files with `{{name}}` where a value of this machine belongs.

use anyhow::{Result, bail};

/// Puts each value in the place of its name.
///
/// # Errors
/// When the template names a value that isn't given.
pub fn render(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    if let Some((_, rest)) = text.split_once("{{") {
        let name = rest.split("}}").next().unwrap_or(rest);
        bail!("the template names {name}, which has no value");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_value_is_an_error() {
        assert_eq!(render("{a: {{a}}}", &[("a", "1")]).unwrap(), "{a: 1}");
        let error = render("{{a}} {{b}}", &[("a", "1")]).unwrap_err();
        assert!(error.to_string().contains("names b,"), "{error}");
    }
}
