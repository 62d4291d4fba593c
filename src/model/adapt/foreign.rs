//! Phases of models that find losses and steerings their own way: in tests of the engine.

use super::AdaptationPhase;
use crate::model::steering::Steering;

impl AdaptationPhase {
    /// A step whose loss is known, and what is tried next.
    #[doc(hidden)]
    pub fn step_with(&mut self, loss: f32, next: impl FnOnce(&Steering) -> Steering) {
        if self.judge(loss) {
            self.settle();
        } else {
            self.current = next(&self.current);
        }
    }
}
