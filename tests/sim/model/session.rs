//! One session of a client: from its first welcome until a return that is not called recovered.

use std::{collections::BTreeSet, time::Duration};

use super::{Case, Finding, Publication, Verdict};

#[derive(Debug, Default)]
pub(super) struct Stay {
    /// The node of its last connection.
    pub(super) node: usize,
    /// When the client dialled for it.
    pub(super) dialled: Duration,
    /// Since when it may have had the rooms that it began with: those of the session before it, if Redis was silent.
    pub(super) rooms_since: Duration,
    /// Its first welcome.
    pub(super) began: Duration,
    /// Whether the server may not have known its rooms then.
    pub(super) provisional: bool,
    pub(super) arrivals: Vec<(Duration, usize)>,
    pub(super) reloads: Vec<Duration>,
}

/// A loss that was told and did not happen.
#[derive(Debug)]
#[expect(dead_code, reason = "the time is printed")]
pub(crate) struct Alarm {
    pub(crate) at: Duration,
    /// The kind of fault before it.
    pub(crate) cause: &'static str,
}

impl Stay {
    /// `next` is the session that took its place, if one did; `arrived` are all numbers that ever came.
    pub(super) fn judge(&self, case: &Case<'_>, arrived: &BTreeSet<usize>, next: Option<&Stay>, verdict: &mut Verdict) {
        self.judge_order(case, verdict);
        for (number, publication) in self.owed(case, arrived) {
            let Some((at, evidence)) = self.evidence(case, number) else {
                let told = next.is_some_and(|next| {
                    publication.ended <= next.dialled && is_member(case, publication, self.dialled, next.began)
                });
                verdict.told += usize::from(told);
                continue;
            };
            if !is_member(case, publication, self.dialled, at) {
                continue;
            }
            if next.is_some() || self.reloads.iter().any(|&reload| reload > publication.began) {
                verdict.told += 1;
            } else {
                let room = publication.room.clone();
                verdict.findings.push(Finding::Lost { missing: number, evidence, room });
            }
        }
        self.judge_alarms(case, arrived, next, verdict);
    }

    /// What is missing of what was published since the session's first welcome.
    fn owed<'a>(&self, case: &Case<'a>, arrived: &BTreeSet<usize>) -> impl Iterator<Item = (usize, &'a Publication)> {
        let numbered = case.publications.iter().enumerate();
        numbered.filter(|(number, publication)| {
            publication.certain && publication.began >= self.began && !arrived.contains(number)
        })
    }

    /// The first message to the user's own room that was published later and came.
    fn evidence(&self, case: &Case<'_>, missing: usize) -> Option<(Duration, usize)> {
        let own = format!("user-{}", case.user);
        let is_own = |number: usize| case.publications.get(number).is_some_and(|published| *published.room == *own);
        self.arrivals.iter().copied().find(|&(_, number)| number > missing && is_own(number))
    }

    /// What comes for the first time was published after everything of its room that came before, unless all of that which
    /// was published later comes again: a return to another node may bring what was lost on the first, and all that followed
    /// it, so that the newest state of each record still comes last.
    fn judge_order(&self, case: &Case<'_>, verdict: &mut Verdict) {
        let mut seen = BTreeSet::new();
        for (index, &(_, number)) in self.arrivals.iter().enumerate() {
            let Some(published) = case.publications.get(number) else { continue };
            let of_room = |&&seen: &&usize| case.publications[seen].room == published.room;
            let comes_again = |after: usize| self.arrivals[index..].iter().any(|&(_, number)| number == after);
            let after = seen.range(number + 1..).rev().filter(of_room).find(|&&after| !comes_again(after));
            if let Some(&after) = after.filter(|_| !seen.contains(&number)) {
                verdict.findings.push(Finding::Swapped { number, after });
            }
            seen.insert(number);
        }
    }

    fn judge_alarms(&self, case: &Case<'_>, arrived: &BTreeSet<usize>, next: Option<&Stay>, verdict: &mut Verdict) {
        let lost_by = |at: Duration| {
            let mut owed = self.owed(case, arrived);
            owed.any(|(_, publication)| publication.began <= at && is_member(case, publication, self.dialled, at))
        };
        let reloads = self.reloads.iter().map(|&at| (at, self.node, self.provisional));
        // A session must not go on when its rooms are others.
        let ends = next.filter(|next| !case.keys.changed(self.dialled, next.began));
        let ends = ends.map(|next| (next.began, next.node, self.provisional || next.provisional));
        for (at, node, provisional) in reloads.chain(ends) {
            if lost_by(at) {
                continue;
            }
            if !provisional && case.coverage.allows_proof(case.publications, self.dialled, at) {
                let fault = case.coverage.last_cause(self.node, self.began, at).unwrap_or("no fault");
                verdict.alarms.push(Alarm { at, cause: if node == self.node { fault } else { "other node" } });
            } else {
                verdict.excused += 1;
            }
        }
    }
}

/// Whether the user was a member of the publication's room all the time.
fn is_member(case: &Case<'_>, publication: &Publication, from: Duration, to: Duration) -> bool {
    match publication.room.split_once('-') {
        None => true,
        Some(("user", user)) => user.parse() == Ok(case.user),
        Some((_, group)) => group.parse().is_ok_and(|group| case.keys.always(group, from, to)),
    }
}
