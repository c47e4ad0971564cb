//! What goes to the terminal: results to stdout, everything about them to stderr.

use std::io::{self, Write};

/// Writes a result. A reader that has left (`| head`) is no error.
pub(crate) fn result(text: &str) {
    drop(io::stdout().lock().write_all(text.as_bytes()));
}

/// Writes something a person may want to know.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
