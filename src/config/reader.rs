//! Takes variables from an [`Environment`] one by one and keeps what was wrong with them.

use std::collections::BTreeSet;

use super::{Environment, Mistake, Variable, mistake::Wrong};

/// Stands for a value that could not be had; why is already in [`Reader::mistakes`].
#[derive(Debug)]
pub(super) struct Reported;

pub(super) struct Reader<'a> {
    environment: &'a Environment,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) notes: Vec<String>,
    /// Names asked for so far; a test compares them with the table.
    pub(super) asked: BTreeSet<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment) -> Self {
        Self { environment, mistakes: Vec::new(), notes: Vec::new(), asked: BTreeSet::new() }
    }

    /// The variable's text without surrounding blanks; none if it is unset or blank.
    pub(super) fn text(&mut self, variable: &Variable) -> Result<Option<&'a str>, Reported> {
        self.asked.insert(variable.name);
        let Some(value) = self.environment.get(variable.name) else { return Ok(None) };
        let Some(text) = value.to_str() else {
            let wrong = Wrong::new("not UTF-8", "write it as plain text");
            self.keep(Mistake::hidden(variable.name, wrong));
            return Err(Reported);
        };
        Ok(Some(text.trim()).filter(|text| !text.is_empty()))
    }

    /// The variable's value, or that of the table's default.
    pub(super) fn value<T>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Result<T, Reported> {
        let text = self.text(variable)?.unwrap_or(variable.default);
        self.check(variable, text, parse(text))
    }

    /// The variable's value, if it is set.
    pub(super) fn optional<T>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Reported> {
        match self.text(variable)? {
            Some(text) => self.check(variable, text, parse(text)).map(Some),
            None => Ok(None),
        }
    }

    /// Keeps the mistake, if it is one.
    pub(super) fn check<T>(
        &mut self,
        variable: &Variable,
        text: &str,
        verdict: Result<T, Wrong>,
    ) -> Result<T, Reported> {
        verdict.map_err(|mut wrong| {
            if text.starts_with(['"', '\'']) {
                // Docker's env files keep quotes as part of the value.
                "remove the quotes around it".clone_into(&mut wrong.mend);
            }
            self.keep(if variable.secret {
                Mistake::hidden(variable.name, wrong)
            } else {
                Mistake::shown(variable.name, text, wrong)
            });
            Reported
        })
    }

    /// A variable that is read for two purposes has its mistake once.
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
