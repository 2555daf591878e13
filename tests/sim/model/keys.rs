//! The groups of one user over time, as its key in Redis names them.

use std::{collections::BTreeSet, time::Duration};

#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(Vec<KeyWrite>);

#[derive(Clone, Debug)]
struct KeyWrite {
    began: Duration,
    ended: Duration,
    groups: BTreeSet<usize>,
}

impl Keys {
    /// The key was written between these times.
    pub(crate) fn write(&mut self, began: Duration, ended: Duration, groups: BTreeSet<usize>) {
        self.0.push(KeyWrite { began, ended, groups });
    }

    /// The values that the key may have had at any time in between.
    fn during(&self, from: Duration, to: Duration) -> impl Iterator<Item = &KeyWrite> {
        let next = self.0.iter().skip(1).map(|next| next.ended).chain([Duration::MAX]);
        let held = self.0.iter().zip(next).filter(move |(write, until)| write.began <= to && *until >= from);
        held.map(|(write, _)| write)
    }

    /// Whether the group may have been named.
    pub(crate) fn ever(&self, group: usize, from: Duration, to: Duration) -> bool {
        self.during(from, to).any(|write| write.groups.contains(&group))
    }

    /// Whether the group was named all the time.
    pub(crate) fn always(&self, group: usize, from: Duration, to: Duration) -> bool {
        self.during(from, to).all(|write| write.groups.contains(&group))
    }

    /// Whether other groups may have been named for a time.
    pub(crate) fn changed(&self, from: Duration, to: Duration) -> bool {
        let mut values = self.during(from, to).map(|write| &write.groups);
        let first = values.next();
        values.any(|value| Some(value) != first)
    }
}
