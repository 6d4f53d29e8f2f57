#include <norma/norma.h>

int main() {
  using namespace norma;
  Tensor x = randn({2, 8}).requires_grad_(), w = ones({8}).requires_grad_();
  rms_norm(x, w).backward(randn({2, 8}));
  print("dw = {}\n", w.grad());
  return x.grad().shape() == Shape{2, 8} ? 0 : 1;
}
