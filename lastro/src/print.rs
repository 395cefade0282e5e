//! Lines on standard output. A reader that has left, as `head` does, is no failure.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _, stderr, stdout};

/// Prints a line. What cannot be printed for another reason is told on standard error.
pub fn line(text: impl Display) {
    if let Err(error) = writeln!(stdout(), "{text}")
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = writeln!(stderr(), "lastro: standard output cannot be written: {error}");
    }
}
