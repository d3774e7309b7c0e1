//! Taking back what a failed ADD did.

use causeway_cni_spec::CniError;

type Undo = Box<dyn FnOnce() -> Result<(), CniError>>;

/// Steps to undo, last one first, unless [`Rollback::commit`] is called. A step is noted before
/// it is tried, so that one that fails half way undoes itself too; undoing what never happened
/// must therefore succeed.
#[derive(Default)]
pub struct Rollback {
    steps: Vec<Undo>,
}

impl Rollback {
    /// Nothing to undo yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does something, or nothing: what a failure left half done is undone.
    ///
    /// # Errors
    /// Those of `act`, with what could not be undone.
    pub fn guard<T>(act: impl FnOnce(&mut Self) -> Result<T, CniError>) -> Result<T, CniError> {
        let mut rollback = Self::new();
        match act(&mut rollback) {
            Ok(done) => {
                rollback.commit();
                Ok(done)
            }
            Err(error) => Err(rollback.fail(error)),
        }
    }

    /// Notes how to undo the step that follows.
    pub fn on_failure(&mut self, undo: impl FnOnce() -> Result<(), CniError> + 'static) {
        self.steps.push(Box::new(undo));
    }

    /// All went well: nothing is undone.
    pub fn commit(mut self) {
        self.steps.clear();
    }

    /// Undoes everything, going on past failures, and returns the error that led to it. What
    /// could not be undone is added to its details.
    #[must_use]
    pub fn fail(mut self, mut error: CniError) -> CniError {
        for problem in self.undo() {
            let sep = if error.details.is_empty() { "" } else { "; " };
            error.details.push_str(&format!("{sep}left behind: {}", problem.msg));
        }
        error
    }

    fn undo(&mut self) -> Vec<CniError> {
        let mut problems = Vec::new();
        while let Some(undo) = self.steps.pop() {
            problems.extend(undo().err());
        }
        problems
    }
}

impl Drop for Rollback {
    fn drop(&mut self) {
        // A way out that forgot both: undo all the same; there is no error to add to.
        drop(self.undo());
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    fn recording() -> (Rollback, Rc<RefCell<Vec<u8>>>) {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut rollback = Rollback::new();
        for n in 0..3 {
            let seen = Rc::clone(&seen);
            rollback.on_failure(move || {
                seen.borrow_mut().push(n);
                if n == 1 { Err(CniError::io("stuck")) } else { Ok(()) }
            });
        }
        (rollback, seen)
    }

    #[test]
    fn undoes_in_reverse_and_goes_on_past_failures() {
        let (rollback, seen) = recording();
        let error = rollback.fail(CniError::internal("no"));
        assert_eq!(*seen.borrow(), [2, 1, 0]);
        assert_eq!(error.details, "left behind: stuck");
    }

    #[test]
    fn commit_undoes_nothing_and_drop_undoes_all() {
        let (rollback, seen) = recording();
        rollback.commit();
        assert!(seen.borrow().is_empty());
        let (rollback, seen) = recording();
        drop(rollback);
        assert_eq!(seen.borrow().len(), 3);
    }
}
