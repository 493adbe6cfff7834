//! Channels as atoms: every index of an axis that a layer produces is one, and atoms that must stay
//! or go together are joined into a class. A class that must stay is frozen, with the reason.

use std::rc::Rc;

/// One index of a producing layer's output axis.
pub type Atom = u32;
/// The atoms along one axis of a value or constant, one per index.
pub type Labels = Rc<[Atom]>;
/// The labels of every axis of a value; `None` for an axis that nothing can shorten.
pub type Axes = Vec<Option<Labels>>;

/// An index that always stays, beside others that may go.
pub const FIXED: Atom = 0;

/// All atoms, with their classes and the layers that are pruned alike.
#[derive(Debug)]
pub struct Atoms {
    parents: Vec<Atom>,
    frozen: Vec<Option<Rc<str>>>,
    layers: Vec<usize>,
    groups: Vec<usize>,
}

impl Default for Atoms {
    fn default() -> Self {
        let fixed: Rc<str> = "it is no layer's channel".into();
        Self { parents: vec![FIXED], frozen: vec![Some(fixed)], layers: vec![0], groups: vec![0] }
    }
}

impl Atoms {
    /// `count` new atoms of a new layer.
    pub fn layer(&mut self, count: usize) -> Labels {
        let layer = self.groups.len();
        self.groups.push(layer);
        let first = self.parents.len();
        for at in first..first + count {
            self.parents.push(Atom::try_from(at).unwrap_or(FIXED));
            self.frozen.push(None);
            self.layers.push(layer);
        }
        self.parents.iter().skip(first).copied().collect()
    }

    /// The class of `atom`: the same number for all of its members.
    pub fn class(&self, mut atom: Atom) -> Atom {
        while let Some(parent) = self.parents.get(atom as usize).filter(|parent| **parent != atom) {
            atom = *parent;
        }
        atom
    }

    /// The group of `atom`: layers with classes in common are one group, and lose channels together.
    pub fn group(&self, atom: Atom) -> usize {
        let mut group = self.layers.get(self.class(atom) as usize).copied().unwrap_or(0);
        while let Some(parent) = self.groups.get(group).filter(|parent| **parent != group) {
            group = *parent;
        }
        group
    }

    /// Why the class of `atom` must stay.
    pub fn reason(&self, atom: Atom) -> Option<Rc<str>> {
        self.frozen.get(self.class(atom) as usize).cloned().flatten()
    }

    /// Makes `a` and `b` stay or go together.
    pub fn join(&mut self, a: Atom, b: Atom) {
        let (a, b) = (self.class(a), self.class(b));
        if a == b {
            return;
        }
        // A fixed index has no channel of its own to join; it only keeps the other.
        if a == FIXED || b == FIXED {
            return self.freeze_one(a.max(b), "it is combined with what is no layer's channel");
        }
        let groups = (self.group(a), self.group(b));
        if let Some(group) = self.groups.get_mut(groups.0.max(groups.1)) {
            *group = groups.0.min(groups.1);
        }
        let (root, leaf) = (a.min(b), a.max(b));
        let reason = self.reason(root).or_else(|| self.reason(leaf));
        if let Some(parent) = self.parents.get_mut(leaf as usize) {
            *parent = root;
        }
        if let Some(frozen) = self.frozen.get_mut(root as usize) {
            *frozen = reason;
        }
        // Shortens later walks.
        for atom in [a, b] {
            if let Some(parent) = self.parents.get_mut(atom as usize) {
                *parent = root;
            }
        }
    }

    /// Joins two axes index by index; axes of different lengths are frozen.
    pub fn join_all(&mut self, a: &[Atom], b: &[Atom]) {
        if a.len() != b.len() {
            self.freeze(a, "it is combined with an axis of another length");
            self.freeze(b, "it is combined with an axis of another length");
            return;
        }
        a.iter().zip(b).for_each(|(a, b)| self.join(*a, *b));
    }

    /// Whether two axes lose the same indices, whatever is removed.
    pub fn same(&self, a: &[Atom], b: &[Atom]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.class(*a) == self.class(*b))
    }

    /// Keeps all of `labels` because of `reason`; the first reason stands.
    pub fn freeze(&mut self, labels: &[Atom], reason: &str) {
        labels.iter().for_each(|atom| self.freeze_one(*atom, reason));
    }

    fn freeze_one(&mut self, atom: Atom, reason: &str) {
        let class = self.class(atom) as usize;
        if let Some(frozen) = self.frozen.get_mut(class)
            && frozen.is_none()
        {
            *frozen = Some(reason.into());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn joined_channels_freeze_together_and_their_layers_are_one_group() {
        let mut atoms = Atoms::default();
        let (a, b, c) = (atoms.layer(2), atoms.layer(2), atoms.layer(2));
        atoms.join_all(&a, &b);
        atoms.freeze(b.get(..1).unwrap(), "because");
        assert_eq!(atoms.reason(*a.first().unwrap()).as_deref(), Some("because"));
        assert_eq!(atoms.reason(*a.last().unwrap()), None);
        assert_eq!(atoms.group(*a.first().unwrap()), atoms.group(*b.last().unwrap()));
        assert_ne!(atoms.group(*a.first().unwrap()), atoms.group(*c.first().unwrap()));
    }

    #[test]
    fn a_fixed_index_keeps_its_partner_and_nothing_else() {
        let mut atoms = Atoms::default();
        let a = atoms.layer(2);
        atoms.join_all(&a, &[FIXED, *a.last().unwrap()]);
        assert!(atoms.reason(*a.first().unwrap()).is_some());
        assert!(atoms.reason(*a.last().unwrap()).is_none());
    }
}
