/* What was decided when this was compiled. */
#include "vectors.h"

long panel(void) { return PANEL; }
long together(void) { return TOGETHER; }
