//! roomkeeper
