//! Takes variables from an [`Environment`] and collects every mistake.
//!
//! A value that cannot be used is replaced by the default of its type, so that reading goes on to the next variable:
//! [`Reader::finish`] discards the whole when there was a mistake.

use super::{
    Environment, Mistakes,
    mistake::{Mistake, Wrong},
    variable::Variable,
};

pub(super) struct Reader<'a> {
    environment: &'a Environment,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) notes: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment) -> Self {
        Self { environment, mistakes: Vec::new(), notes: Vec::new() }
    }

    /// `value`, unless there was a mistake.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Mistakes> {
        if self.mistakes.is_empty() { Ok(value) } else { Err(Mistakes(self.mistakes)) }
    }

    /// The variable's text without surrounding blanks; `None` if it is unset, blank or not UTF-8.
    pub(super) fn text(&mut self, variable: &Variable) -> Option<&'a str> {
        let value = self.environment.variables.get(variable.name)?;
        if value.to_str().is_none() {
            self.keep(Mistake::hidden(variable.name, Wrong::new("not UTF-8", "write it as plain text")));
        }
        value.to_str().map(str::trim).filter(|text| !text.is_empty())
    }

    /// The variable's value, or that of the table's default.
    pub(super) fn value<T: Default>(&mut self, variable: &Variable, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> T {
        let text = self.text(variable).unwrap_or(variable.default);
        self.check(variable, text, parse(text)).unwrap_or_default()
    }

    /// The variable's value, if it is set.
    pub(super) fn optional<T>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&'a str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let text = self.text(variable)?;
        self.check(variable, text, parse(text))
    }

    /// The value that `text` was parsed to; a mistake is kept.
    pub(super) fn check<T>(&mut self, variable: &Variable, text: &str, parsed: Result<T, Wrong>) -> Option<T> {
        let mut wrong = match parsed {
            Ok(value) => return Some(value),
            Err(wrong) => wrong,
        };
        if text.starts_with(['"', '\'']) {
            // Docker's env files keep quotes as part of the value.
            "remove the quotes around it".clone_into(&mut wrong.mend);
        }
        self.keep(if variable.secret {
            Mistake::hidden(variable.name, wrong)
        } else {
            Mistake::shown(variable.name, text, wrong)
        });
        None
    }

    /// Keeps a mistake once, though its variable may be read for two purposes.
    fn keep(&mut self, mistake: Mistake) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// Keeps a remark for the start block. It must not hold a value that may be secret.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}
