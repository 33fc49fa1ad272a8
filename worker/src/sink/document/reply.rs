//! What a server says of a write.

use mongodb::{
    bson::{Bson, Document},
    error::{Error, ErrorKind},
};

/// A document of this id is there already.
const DUPLICATE_KEY: i64 = 11_000;

/// Codes that say something of the server and nothing of the document.
const PASSING: &[i64] = &[
    6, 7, 13, 18, 24, 43, 50, 63, 64, 79, 89, 91, 100, 112, 133, 150, 189, 202, 215, 234, 246, 249,
    262, 267, 272, 319, 343, 358, 365, 371, 384, 391, 402, 433, 449, 8_000, 9_001, 10_058, 10_107,
    11_600, 11_602, 13_388, 13_435, 13_436, 14_031, 16_500,
];

/// Codes by which a whole command is refused for what is in a document: bad values, types and
/// names, too large, or nothing that the server can do.
const REFUSING: &[i64] = &[
    2, 9, 14, 15, 22, 28, 52, 53, 55, 56, 57, 66, 121, 238, 10_334, 17_280, 17_419, 17_420,
];

/// Why a command wasn't carried out.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server will never take one of the documents.
    Refused(String),
    /// It may take them later.
    Passing(String),
}

/// What became of one of the documents.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is one of this id.
    IsThere,
    /// The server will never take it.
    Refused(String),
}

/// What became of the documents of a command: how many were taken, and the others by their index.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub taken: i64,
    pub problems: Vec<(usize, Problem)>,
}

/// Reads the answer to a write.
pub fn read(answer: &Document) -> Result<Reply, Failure> {
    if let Ok(concern) = answer.get_document("writeConcernError") {
        return Err(Failure::Passing(message(concern)));
    }
    let mut reply = Reply {
        taken: number(answer, "n").unwrap_or(0),
        problems: Vec::new(),
    };
    let Ok(errors) = answer.get_array("writeErrors") else {
        return Ok(reply);
    };
    for error in errors.iter().filter_map(Bson::as_document) {
        let index = number(error, "index").and_then(|index| usize::try_from(index).ok());
        let problem = match number(error, "code") {
            Some(DUPLICATE_KEY) => Problem::IsThere,
            Some(code) if PASSING.contains(&code) => return Err(Failure::Passing(message(error))),
            _ => Problem::Refused(message(error)),
        };
        reply.problems.push((index.unwrap_or(0), problem));
    }
    Ok(reply)
}

/// What an error of the driver means.
pub fn failure(error: &Error) -> Failure {
    match error.kind.as_ref() {
        ErrorKind::Command(command) if REFUSING.contains(&i64::from(command.code)) => {
            Failure::Refused(command.message.clone())
        }
        // What can't be sent at all.
        ErrorKind::BsonSerialization(_) => Failure::Refused(error.to_string()),
        _ => Failure::Passing(error.to_string()),
    }
}

fn message(error: &Document) -> String {
    let text = error.get_str("errmsg").unwrap_or("no reason is given");
    match number(error, "code") {
        Some(code) => format!("{text} (code {code})"),
        None => text.to_owned(),
    }
}

/// A number, whatever its type.
pub fn number(document: &Document, field: &str) -> Option<i64> {
    match document.get(field)? {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn answers_are_read() {
        let error = |index: i32, code: i32| doc! {"index": index, "code": code, "errmsg": "why"};
        let all = read(&doc! {"n": 3, "ok": 1.0});
        assert_eq!(all.unwrap().taken, 3);
        let some = doc! {"n": 1, "writeErrors": [error(0, 11_000), error(2, 121)], "ok": 1.0};
        let refused = Problem::Refused("why (code 121)".into());
        assert_eq!(
            read(&some).unwrap().problems,
            [(0, Problem::IsThere), (2, refused)]
        );
        let passing = Err(Failure::Passing("why (code 91)".into()));
        assert_eq!(read(&doc! {"writeErrors": [error(0, 91)]}), passing);
        let concern = doc! {"n": 1, "writeConcernError": {"code": 91, "errmsg": "why"}};
        assert_eq!(read(&concern), passing);
    }
}
