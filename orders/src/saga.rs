//! Sagas as they are carried out: `steps` makes the calls, each beside its undo, `drive` goes from one to the next, `sweep` takes up what was left.

mod drive;
mod steps;
mod sweep;

pub use drive::drive;
pub use steps::methods;
pub use sweep::sweep;
