// Views of Python tensors through DLPack (https://dmlc.github.io/dlpack/latest/), the protocol that PyTorch
// and NumPy both speak: no copy is made, and neither library is needed to build this.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace g2rpo {

namespace dlpack {  // version 0.8, which is what __dlpack__() without a version gives

struct Device {
    int32_t type, id;
};
struct Type {
    uint8_t code, bits;
    uint16_t lanes;
};
struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    Type dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};
struct Managed {
    Tensor tensor;
    void* manager;
    void (*deleter)(Managed*);
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kFloat = 2;

}  // namespace dlpack

// Numbers of one type on the host, at any strides (in elements); the tensor lives as long as the view.
template <class Number>
class TensorView {
  public:
    // Of a tensor, or of the capsule that it gives. Raises TypeError, naming the argument, for anything else.
    TensorView(pybind11::handle tensor, std::string name) : name_(std::move(name)) {
        if (PyCapsule_CheckExact(tensor.ptr())) {
            capsule_ = pybind11::reinterpret_borrow<pybind11::object>(tensor);
        } else {
            if (!pybind11::hasattr(tensor, "__dlpack__")) throw wanted("a tensor");
            capsule_ = tensor.attr("__dlpack__")();
        }
        auto* const managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
        if (managed == nullptr) throw pybind11::error_already_set();
        const dlpack::Tensor& given = managed->tensor;
        constexpr uint8_t kCode = std::is_floating_point_v<Number> ? dlpack::kFloat : dlpack::kInt;
        const bool same =
            given.dtype.code == kCode && given.dtype.bits == 8 * sizeof(Number) && given.dtype.lanes == 1;
        if (given.device.type != dlpack::kCpu || !same)
            throw wanted((kCode == dlpack::kFloat ? "float" : "int") + std::to_string(8 * sizeof(Number)) +
                         " on the CPU");
        data_ = reinterpret_cast<Number*>(static_cast<char*>(given.data) + given.byte_offset);
        shape_.assign(given.shape, given.shape + given.ndim);
        int64_t gapless = 1;
        strides_.resize(shape_.size());
        for (size_t axis = shape_.size(); axis-- > 0; gapless *= shape_[axis]) {
            strides_[axis] = given.strides == nullptr ? gapless : given.strides[axis];
            contiguous_ = contiguous_ && (shape_[axis] == 1 || strides_[axis] == gapless);
        }
        size_ = gapless;
    }

    int64_t ndim() const { return static_cast<int64_t>(shape_.size()); }
    int64_t shape(size_t axis) const { return shape_[axis]; }
    int64_t stride(size_t axis) const { return strides_[axis]; }
    int64_t size() const { return size_; }
    Number* data() const { return data_; }

    // This, if its numbers lie side by side; else raises TypeError.
    TensorView gapless() && {
        if (size_ > 0 && !contiguous_) throw wanted("numbers without gaps");
        return std::move(*this);
    }

  private:
    pybind11::type_error wanted(const std::string& what) const {
        return pybind11::type_error(name_ + ": wanted " + what);
    }

    std::string name_;
    pybind11::object capsule_;  // its destructor gives the memory back
    Number* data_ = nullptr;
    std::vector<int64_t> shape_, strides_;
    int64_t size_ = 0;
    bool contiguous_ = true;
};

}  // namespace g2rpo
