"""Operations in C++ for what torch does not do in one pass on a CPU; without a compiler, torch does them."""
