//! Libraries may panic over input that they weren't made for. That is an error of the input: the
//! same record would end each worker that reads it, and a spec the operator.

use std::panic::{self, AssertUnwindSafe};

/// Does something in a library's code; what a panic says is the error. What it has changed by then
/// may be half done, and is to be thrown away.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic that doesn't say why").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_why() {
        assert_eq!(caught(|| 5), Ok(5));
        let found = caught(|| [1, 2].split_at(std::hint::black_box(3)).0.len());
        assert_eq!(found, Err("mid > len".to_owned()));
        let number = std::hint::black_box(7);
        assert_eq!(
            caught(|| panic!("no {number}")),
            Err::<(), _>("no 7".to_owned())
        );
    }
}
