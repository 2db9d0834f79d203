//! The volume as a whole: six copies with their appender.

mod rewinding;
mod timelines;
